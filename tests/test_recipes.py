"""Each recipe of docs/extending.md works as written: its file and its entry point, in their own distribution."""

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import semrsm_dist as srs
from tests import distributions

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


IN_MEMORY = """
import numpy as np
import semrsm_dist as srs
z = np.load("features.npy")
m = srs.match(z[0], z[1], matcher="by-norm", order=1)
assert np.isclose(m.value, (z[0] * z[1][m.permutation]).sum()) and m.value <= m.upper_bound
"""
"""Match in memory with the recipe's matcher, in its folder."""

TITLES = ("A matcher", "A data source", "An experiment", "An engine")
Z = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)


def install(folder, title):
    """Make a folder with some features, the jobs that ship, and an installed recipe; return the recipe's command."""
    source, path, points, command = read_recipe(title)
    distributions.install(folder / "site", Path(path).stem, points, source)
    (folder / "jobs").symlink_to(ROOT / "jobs")
    np.save(folder / "features.npy", Z)
    program, *arguments = command
    assert program == "semrsm"
    return arguments


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder and the output of each recipe's own command, by its title; of `evaluate --help`, too."""
    home = tmp_path_factory.mktemp("recipes")
    folders = {title: home / title for title in TITLES}
    commands = [(folder, install(folder, title)) for title, folder in folders.items()]
    commands += [(folders["A matcher"], ["evaluate", "--help"])]
    sites = [folder / "site" for folder in folders.values()]
    answers = distributions.give(commands, *sites, more=IN_MEMORY)
    for status, _, errors in answers:
        assert status == 0, errors
    outputs = dict(zip([*TITLES, "help"], (output for _, output, _ in answers), strict=True))
    return folders, outputs


def test_matcher(followed):
    run = srs.open_run(followed[0]["A matcher"] / "runs/features")
    ranks = np.argsort(np.abs(Z).sum(axis=2), axis=1)
    flat = np.stack([z[order].ravel() for z, order in zip(Z.astype(float), ranks, strict=True)])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(run.similarity("last"), flat @ flat.T, rtol=1e-6)
    assert (run.gap("last") > 0).values[np.triu_indices(7, 1)].all()


def test_data_source(followed):
    run = srs.open_run(followed[0]["A data source"] / "runs/digits")
    assert run.manifest().image_ids() == [f"{width}-px" for width in range(1, 7)]
    assert run.manifest().labels() == [("thin",)] * 3 + [("wide",)] * 3
    columns = np.arange(96) // np.arange(1, 7)[:, None] % 2 * 255
    images = np.broadcast_to(columns[:, None, :, None], (6, 96, 96, 3)).astype(np.uint8)
    z = srs.extract("test_resnet", images, "layer4", weights="digits")["layer4"]
    np.testing.assert_allclose(run.similarity("layer4"), srs.similarity_matrix(z), atol=1e-3)


def test_experiment(followed):
    folders, outputs = followed
    assert "quantile" in outputs["An experiment"]
    results = folders["An experiment"] / "runs/features/evaluation"
    table = pd.read_parquet(results / "spread.parquet")
    similarity = srs.similarity_matrix(Z, kernel="cosine")
    assert table["layer"].tolist() == ["last"]
    np.testing.assert_allclose(table["quantile"], [np.quantile(similarity, 0.5)], atol=1e-3)
    assert (results / "spread.png").exists()
    assert "how large are the large similarities?" in outputs["help"]


def test_engine(followed):
    run = srs.open_run(followed[0]["An engine"] / "runs/features")
    assert run.summary()["engine"]["engine"] == "serial"
    similarity = srs.similarity_matrix(Z, kernel="cosine")
    np.testing.assert_allclose(run.similarity("last"), similarity, rtol=0, atol=run.rounding("last"))
