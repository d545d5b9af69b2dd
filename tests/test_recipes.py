"""Each recipe of docs/extending.md works as written: its file and its entry point, in their own distribution."""

import json
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


PROGRAM = """
import contextlib, io, json, os, sys
import numpy as np
import semrsm_dist as srs
from semrsm_dist.cli.commands import main

for folder, arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            status = main(arguments)
        except SystemExit as end:  # after its help
            status = end.code
    print(json.dumps([status, out.getvalue(), errors.getvalue()]))
z = np.load("features.npy")
m = srs.match(z[0], z[1], matcher="by-norm", order=1)
assert np.isclose(m.value, (z[0] * z[1][m.permutation]).sum()) and m.value <= m.upper_bound
"""
"""Give commands in their folders, with the libraries loaded once, and match in memory with the recipe's matcher."""

TITLES = ("A matcher", "A data source", "An experiment", "An engine")
Z = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)


def install(folder, title):
    """Make a folder with some features, the jobs that ship, and an installed recipe; return the recipe's command."""
    source, path, points, command = read_recipe(title)
    info = folder / "site" / f"{Path(path).stem}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / path).write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {Path(path).stem}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
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
    commands = [[str(folder), install(folder, title)] for title, folder in folders.items()]
    commands += [[str(folders["A matcher"]), ["evaluate", "--help"]]]
    sites = [str(folder / "site") for folder in folders.values()]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([*sites, str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for status, _, errors in answers:
        assert status == 0, errors
    assert done.returncode == 0, done.stderr
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
