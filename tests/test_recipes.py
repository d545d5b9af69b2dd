"""Each recipe of docs/extending.md works as written: its file and its entry point, in their own distribution."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import semrsm_dist as srs

ROOT = Path(__file__).parents[1]
RECIPES = (ROOT / "docs/extending.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read_recipe(title):
    """Return the file of a recipe, its name, its group and name of entry point, and its command."""
    section = re.split(r"^## ", RECIPES, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(title))
    (source,) = (body for language, body in BLOCK.findall(text) if language == "python")
    path = source.splitlines()[0].removeprefix("# ")
    (points,) = (tomllib.loads(body) for language, body in BLOCK.findall(RECIPES) if language == "toml")
    ((group, name, target),) = (
        (group, name, target)
        for group, entries in points["project"]["entry-points"].items()
        for name, target in entries.items()
        if target.split(":")[0] == Path(path).stem
    )
    commands = [
        line for language, body in BLOCK.findall(RECIPES) if not language for line in body.splitlines()
    ]
    (command,) = (command for command in commands if re.search(rf"\b{name}\b", command))
    return source, path, f"[{group}]\n{name} = {target}\n", shlex.split(command, comments=True)


class Toy:
    """A folder with some features, the jobs that ship, and one installed recipe."""

    def __init__(self, folder, title):
        source, path, points, self.command = read_recipe(title)
        site = folder / "site"
        info = site / "toy-1.0.dist-info"
        info.mkdir(parents=True)
        (site / path).write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
        self.folder = folder
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
        }
        (folder / "jobs").symlink_to(ROOT / "jobs")
        self.z = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
        np.save(folder / "features.npy", self.z)

    def python(self, *arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def follow(self):
        """Give the recipe's own command."""
        program, *arguments = self.command
        assert program == "semrsm"
        return self.python("-m", "semrsm_dist", *arguments)


@pytest.fixture
def toy(request, tmp_path):
    return Toy(tmp_path, request.param)


def follows(title):
    return pytest.mark.parametrize("toy", [title], indirect=True, ids=[title])


@follows("A matcher")
def test_matcher(toy):
    toy.follow()
    run = srs.open_run(toy.folder / "runs/features")
    ranks = np.argsort(np.abs(toy.z).sum(axis=2), axis=1)
    flat = np.stack([z[order].ravel() for z, order in zip(toy.z.astype(float), ranks, strict=True)])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(run.similarity("last"), flat @ flat.T, rtol=1e-6)
    assert (run.gap("last") > 0).values[np.triu_indices(7, 1)].all()
    code = """
import numpy as np, semrsm_dist as srs
z = np.load("features.npy")
m = srs.match(z[0], z[1], matcher="by-norm", order=1)
assert np.isclose(m.value, (z[0] * z[1][m.permutation]).sum()) and m.value <= m.upper_bound
"""
    toy.python("-c", code)


@follows("A data source")
def test_data_source(toy):
    toy.follow()
    run = srs.open_run(toy.folder / "runs/digits")
    assert run.manifest().image_ids() == [f"{width}-px" for width in range(1, 7)]
    assert run.manifest().labels() == [("thin",)] * 3 + [("wide",)] * 3
    columns = np.arange(96) // np.arange(1, 7)[:, None] % 2 * 255
    images = np.broadcast_to(columns[:, None, :, None], (6, 96, 96, 3)).astype(np.uint8)
    z = srs.extract("test_resnet", images, "layer4", weights="digits")["layer4"]
    np.testing.assert_allclose(run.similarity("layer4"), srs.similarity_matrix(z), atol=1e-3)


@follows("An experiment")
def test_experiment(toy):
    assert "quantile" in toy.follow()
    table = pd.read_parquet(toy.folder / "runs/features/evaluation/spread.parquet")
    similarity = srs.similarity_matrix(toy.z, kernel="cosine")
    assert table["layer"].tolist() == ["last"]
    np.testing.assert_allclose(table["quantile"], [np.quantile(similarity, 0.5)], atol=1e-3)
    assert (toy.folder / "runs/features/evaluation/spread.png").exists()
    assert "how large are the large similarities?" in toy.python("-m", "semrsm_dist", "evaluate", "--help")


@follows("An engine")
def test_engine(toy):
    toy.follow()
    run = srs.open_run(toy.folder / "runs/features")
    assert run.summary()["engine"]["engine"] == "serial"
    similarity = srs.similarity_matrix(toy.z, kernel="cosine")
    np.testing.assert_allclose(run.similarity("last"), similarity, rtol=0, atol=run.rounding("last"))
