"""Any file of a run is lost or damaged between two sessions: the next one ends with the same bytes, or says why not.

Each of the `DAMAGES` meets each file, in a run that is unfinished or finished; and each file is damaged in some way in
both. Several files, of different parts of a run, are damaged at once, each in another way: `SETS` of them, of which the
n-th file gets the n-th damage, then the one after, and so on. So a third of a minute is enough.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.engine.engines.local import LocalEngine
from semrsm_dist.errors import ResumeError, StorageError

N, TILE = 14, 4
GROUPS = ("features.zarr", "tiles.zarr", "rsm.zarr")
N_TILES = 10
TEXT = "of somebody"

DAMAGES = ["deleted", "truncated", "zeroed", "flipped", "folder", "link", "pipe"]
SETS = [
    [
        "run.json",
        "features.zarr/zarr.json",
        "features.zarr/images/a/squared_norm/zarr.json",
        "tiles.zarr/a/tiles/c/0/0/1",
    ],
    [
        "run.copy.json",
        "images.parquet",
        "features.zarr/images/a/features/zarr.json",
        "tiles.zarr/zarr.json",
    ],
    [
        "events.jsonl",
        "lock",
        "features.zarr/images/a/zarr.json",
        "tiles.zarr/a/tiles/zarr.json",
    ],
    ["features.zarr/images/zarr.json", "tiles.zarr/a/zarr.json"],
]
FEATURES = ["features.zarr/images/a/features/c/0/0/0", "features.zarr/images/a/squared_norm/c/0"]
"""What a run that is finished does not need, and makes again only if it is missing."""

FINISHED_SETS = [
    [
        "summary.json",
        "tiles.zarr/a/image_i/zarr.json",
        "tiles.zarr/a/squared_norm_i/c/0",
        "rsm.zarr/zarr.json",
        "rsm.zarr/a/matched/c/0/0",
    ],
    [
        "inventory.parquet",
        "tiles.zarr/a/squared_norm_j/zarr.json",
        "rsm.zarr/a/zarr.json",
        "rsm.zarr/a/matched/zarr.json",
    ],
]
"""Of files that an unfinished run does not have."""


def document(shop, run):
    names = "\n".join(["image_id,labels", *(f"i{k},{'xy'[k % 2]}" for k in range(N))])
    features = shop.path / "a.npy"
    if not features.exists():  # the record has the times of both files
        shop.features("a.npy", (N, 5, 3))
        (shop.path / "table.csv").write_text(names)
    run = shop.of_features(run, {"a": features}, matching={"tile": TILE})
    run["data"]["table"] = str(shop.path / "table.csv")
    return run | {"output": {"matrices": "stored"}, "kernels": ["cosine", "rbf"]}


@pytest.fixture(scope="module")
def engine():
    engine = LocalEngine(workers=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def runs(module_shop, engine):
    """The shop with a finished and an unfinished run."""
    module_shop.run(document(module_shop, "finished"), engine=engine)
    assert module_shop.interrupt(document(module_shop, "unfinished"), "matching", 30)
    assert 0 < len(module_shop.tiles(module_shop.path / "unfinished")) < N_TILES
    return module_shop


def damage(file: Path, how: str, at: float = 0.5) -> None:
    """Damage a file in one of the ways of `DAMAGES`; a bit is flipped `at` a part of its length."""
    content = bytearray(file.read_bytes())
    if how in ("deleted", "folder", "link", "pipe"):
        file.unlink()
        if how == "folder":
            file.mkdir()
            (file / "kept").write_text(TEXT)
        elif how == "link":
            file.symlink_to(somebodys_file(file))
        elif how == "pipe":  # which nobody writes to
            os.mkfifo(file)
        return
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "zeroed":
        content = bytearray(len(content))
    else:
        content[int(at * len(content))] ^= 4
    file.write_bytes(content)


def somebodys_file(beside: Path) -> Path:
    """Return a file that is not of any run."""
    folder = next(parent.parent for parent in beside.parents if parent.name == "copy") / "somebody"
    folder.mkdir(exist_ok=True)
    file = folder / beside.name
    file.write_text(TEXT)
    return file


def arrays(runs, run):
    """Return the hashes of what is in the groups of a run, without what was moved aside."""
    files = (
        (f"{group}/{name}", content)
        for group in GROUPS
        for name, content in runs.tree(runs.path / run / group).items()
    )
    return {name: content for name, content in files if ".aside-" not in name}


def spoiled(runs, state, spoil):
    """Return a copy of a run in which something is spoiled."""
    run = runs.path / "copy"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(runs.path / state, run)
    spoil(run)
    return run


def require_whole(runs, state, spoil, engine):
    """Spoil a run, run it again, and check that it ends as if nothing had happened; return the summary."""
    before = runs.chunks(spoiled(runs, state, lambda run: None), "tiles.zarr")
    run = runs.path / "copy"
    spoil(run)
    left = runs.chunks(run, "tiles.zarr")
    intact = {name for name, stamp in before.items() if left.get(name) == stamp}
    summary = runs.run(document(runs, "copy"), engine=engine)
    after = runs.chunks(run, "tiles.zarr")
    assert {name: before[name] for name in intact} == {name: after[name] for name in intact}
    assert summary["work"]["matching"]["computed"] == N_TILES - len(intact)  # none that is good twice
    assert arrays(runs, "copy") == arrays(runs, "finished")
    assert srs.open_run(run).manifest().image_ids() == [f"i{k}" for k in range(N)]
    assert not list(run.rglob("*.partial"))
    others = [*run.rglob("*.aside-1/kept"), *(runs.path / "somebody").glob("*")]
    assert all(file.read_text() == TEXT for file in others)
    return summary


def damage_all(run, files, first):
    """Damage files in different ways, beginning with the `first` of `DAMAGES`, and leave parts of a killed writer."""
    (run / "tiles.zarr/a/tiles/c/0/0/1.0123abcd.partial").write_bytes(b"half")
    for place, name in enumerate(files):
        damage(run / name, DAMAGES[(first + place) % len(DAMAGES)])


@pytest.mark.parametrize("first", range(len(DAMAGES)))
@pytest.mark.parametrize("number", range(len(SETS)))
def test_a_run_goes_on_without_any_of_its_files(runs, engine, number, first):
    state = ("unfinished", "finished")[(number + first) % 2]
    require_whole(runs, state, lambda run: damage_all(run, SETS[number], first), engine)


@pytest.mark.parametrize("first", range(len(DAMAGES)))
def test_an_unfinished_run_makes_damaged_features_again(runs, engine, first):
    require_whole(runs, "unfinished", lambda run: damage_all(run, FEATURES, first), engine)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_finished_run_makes_features_again_that_are_missing_and_names_others(runs, engine, how):
    run = spoiled(runs, "finished", lambda run: damage(run / FEATURES[0], how))
    summary = runs.run(document(runs, "copy"), engine=engine)
    is_missing = how in ("deleted", "folder", "pipe")
    assert (arrays(runs, "copy") == arrays(runs, "finished")) == is_missing
    assert any("damaged chunks: 1" in warning for warning in summary["warnings"]) != is_missing
    assert (run / FEATURES[0]).is_file()


@pytest.mark.parametrize("how", ["flipped", "truncated"])
@pytest.mark.parametrize("tile", ["tiles.zarr/a/tiles/c/0/0/1", "tiles.zarr/a/tiles/zarr.json"])
def test_a_tile_that_is_made_again_has_its_damaged_features_made_again_before(runs, engine, tile, how):
    def spoil(run):
        damage(run / "tiles.zarr/a/tiles/c/0/0/1", "zeroed")
        for name in {tile, *FEATURES}:
            damage(run / name, how)

    require_whole(runs, "finished", spoil, engine)


@pytest.mark.parametrize("first", range(len(DAMAGES)))
@pytest.mark.parametrize("number", range(len(FINISHED_SETS)))
def test_a_finished_run_is_whole_again_without_any_of_its_files(runs, engine, number, first):
    require_whole(runs, "finished", lambda run: damage_all(run, FINISHED_SETS[number], first), engine)


@pytest.mark.parametrize(
    ("state", "how"), [(("unfinished", "finished")[number % 2], how) for number, how in enumerate(DAMAGES)]
)
def test_a_record_that_is_lost_with_its_copy_is_made_anew(runs, engine, state, how):
    def lose(run):
        for name in ("run.json", "run.copy.json"):
            damage(run / name, how)

    record = (runs.path / "finished" / "run.json").read_text()
    summary = require_whole(runs, state, lose, engine)
    assert any("run.json: lost, and so is its copy; made anew" in warning for warning in summary["warnings"])
    found = (runs.path / "copy" / "run.json").read_text()
    assert found.replace("/copy", "/finished").partition('"digest"')[0] == record.partition('"digest"')[0]


def test_a_lost_record_is_not_made_anew_for_another_run(runs, engine):
    run = spoiled(
        runs, "unfinished", lambda run: [(run / name).unlink() for name in ("run.json", "run.copy.json")]
    )
    other = document(runs, "copy")
    other["data"]["layers"]["a"] = str(runs.features("other.npy", (N, 5, 3), seed=1))
    before = runs.tree(run)
    with pytest.raises(StorageError, match=r"the record of the run is lost .* start the run's command"):
        srs.open_run(run)
    with pytest.raises(
        ResumeError, match=r"not one of the configured run .* start the command that began the run"
    ):
        runs.run(other, engine=engine)
    assert runs.tree(run) == before
    (run / "tiles.zarr" / "a" / "tiles" / "zarr.json").unlink()
    with pytest.raises(StorageError, match=r"the description of the tiles .* is lost, and so is run\.json"):
        runs.run(document(runs, "copy"), engine=engine)


def test_swapped_tiles_of_an_unfinished_run_are_computed_again(runs, engine):
    def swap(run):
        one, two = runs.tiles(run)[:2]
        one.rename(run / "third")
        two.rename(one)
        (run / "third").rename(two)

    run = spoiled(runs, "unfinished", swap)
    found = len(runs.tiles(run))
    summary = runs.run(document(runs, "copy"), engine=engine)
    assert summary["work"]["matching"] == {"found": found - 2, "computed": N_TILES - found + 2}
    assert arrays(runs, "copy") == arrays(runs, "finished")


@pytest.mark.parametrize("at", np.linspace(0.05, 0.95, 7))
def test_a_bit_flipped_anywhere_changes_no_result(runs, engine, at):
    def flip(run):
        for name in ("run.json", "images.parquet", "tiles.zarr/a/zarr.json", "tiles.zarr/a/tiles/zarr.json"):
            damage(run / name, "flipped", at)

    require_whole(runs, "finished", flip, engine)


@pytest.mark.parametrize("damaged", ["tiles.zarr/a/tiles/c/0/0/1", "rsm.zarr/a/matched/c/0/0"])
def test_a_flipped_bit_that_leaves_size_and_time_is_found_by_verification(runs, engine, damaged):
    def rot(run):
        stat = (run / damaged).stat()
        damage(run / damaged, "flipped")
        os.utime(run / damaged, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    run = spoiled(runs, "finished", rot)
    assert runs.run(document(runs, "copy"), engine=engine)["work"]["matching"]["computed"] == 0
    (fault,) = srs.open_run(run).verify(fast=True).faults
    assert f"{fault.array}/c/{fault.place.replace('.', '/')}" == damaged


@pytest.mark.parametrize("kind", ["dangling", "loop", "pipe", "file of a folder"])
def test_what_is_no_file_in_the_place_of_one_is_moved_aside(runs, engine, kind):
    def put(run):
        for name in ("lock", "events.jsonl", "summary.json", "tiles.zarr"):
            path = run / name
            if path.is_dir() != (kind == "file of a folder") or (kind == "pipe" and name == "summary.json"):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if kind == "dangling":
                path.symlink_to("nowhere")
            elif kind == "loop":
                path.symlink_to(path.name)
            elif kind == "pipe":
                os.mkfifo(path)
            else:
                path.write_text(TEXT)

    require_whole(runs, "finished", put, engine)
