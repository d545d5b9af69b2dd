"""Verification: every kind of fault is found under its name, and a repair gives the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import semrsm_dist as srs
from semrsm_dist.errors import InputError, ResumeError
from semrsm_dist.pipeline.repair import verify_and_repair
from semrsm_dist.report.view.live import LiveRun
from semrsm_dist.report.view.pyramid import Tile
from semrsm_dist.results.verification.recorded import recorded_config
from semrsm_dist.store import arrays, chunks, locks
from semrsm_dist.store.directory import RunDirectory

TILES = "tiles.zarr/last/tiles"
FEATURES = "features.zarr/images/last/features"
EVERYTHING = {"sample": 10**6, "seed": 0}


def grouped(n):
    """Return features of images of a few kinds."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(4, 6, 5))[np.arange(n) % 4] + 0.3 * rng.normal(size=(n, 6, 5))).astype(
        np.float32
    )


def make_matrices(shop):
    table = shop.path / "table.csv"
    table.write_text("image_id,labels\n" + "".join(f"i{n},{n % 3}\n" for n in range(40)))
    document = shop.of_features(
        "run",
        shop.save("z.npy", grouped(40)),
        kernels=["cosine", "rbf"],
        output={"matrices": "stored"},
        matching={"tile": 16},
    )
    document["data"]["table"] = str(table)
    return document


def make_queries(shop):
    document = shop.of_features("run", shop.save("z.npy", grouped(40)), matching={"tile": 16})
    queries = {"source": "features", "layers": {"last": str(shop.save("q.npy", grouped(21) + 0.5))}}
    return {**document, "queries": queries}


def make_unequal(shop):
    document = shop.of_features("run", shop.save("z.npy", grouped(40)), matching={"tile": 16})
    counts = shop.save("counts.npy", np.arange(40) % 4 + 3)
    document["data"]["token_counts"] = {"last": str(counts)}
    return document


def make_neighbours(shop):
    return shop.of_features(
        "run",
        shop.save("z.npy", grouped(40)),
        matching={"tile": 16},
        output={"neighbours": {"k": 3}},
    )


def make_images(shop):
    return shop.of_images("run", shop.images(), matching={"tile": 4})


MAKERS = {
    "matrices": make_matrices,
    "queries": make_queries,
    "unequal": make_unequal,
    "neighbours": make_neighbours,
    "images": make_images,
}


@pytest.fixture(scope="module")
def originals(module_shop):
    """Finished runs by name, each made once; a test works on a copy."""
    made = {}

    def get(name):
        if name not in made:
            shop = type(module_shop)(module_shop.path / name)
            shop.path.mkdir()
            document = MAKERS[name](shop)
            srs.run(document)
            made[name] = Path(document["run"])
        return made[name]

    return get


@pytest.fixture
def copy(originals, tmp_path):
    """Return a copy of a finished run."""

    def copied(name):
        return Path(shutil.copytree(originals(name), tmp_path / "run"))

    return copied


def chunk(run, array, *index):
    return run.joinpath(array, "c", *map(str, index))


def alter(run, array, index, change):
    """Change the numbers of a chunk, which then is as valid as before."""
    path = run / array
    opened = arrays.open_array(path.parent, path.name)
    values = chunks.read_chunk(opened, index).copy()
    change(values)
    chunks.write_chunk(opened, index, values)


def put(place, value):
    def change(values):
        values[place] = value

    return change


def add(place, value):
    def change(values):
        values[place] += value

    return change


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def edit_json(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_manifest(run, column, value):
    path = run / "images.parquet"
    table = pyarrow.parquet.read_table(path)
    values = table.column(column).to_pylist()
    values[3] = value
    place = table.schema.get_field_index(column)
    changed = pyarrow.array(values, table.schema.field(column).type)
    pyarrow.parquet.write_table(table.set_column(place, table.schema.field(column), changed), path)


def foreign_tile(index):
    """Put the tile of another run in the place of one."""

    def do(run):
        config = dict(srs.open_run(run).record.config)
        other = run.parent / "other"
        srs.run(config | {"run": str(other), "features": {"dtype": "float16"}})
        shutil.copy(chunk(other, TILES, *index), chunk(run, TILES, *index))

    return do


COSINE, LAYER = "rsm.zarr/last/semantic_cosine", "tiles.zarr/last"
POOLED, NORMS, COUNTS = (
    f"features.zarr/images/last/{name}" for name in ("pooled", "squared_norm", "token_count")
)
QUERIES = "features.zarr/queries/last/features"
INDICES, MATCHED, GAPS = (f"neighbours.zarr/last/{name}" for name in ("indices", "matched", "gap"))
CANDIDATES, FLOORS = "candidates.zarr/last/candidates", "candidates.zarr/last/known"


def altered(array, index, change):
    return lambda run: alter(run, array, index, change)


def on(array, index, do):
    """Do something with the file of a chunk."""
    return lambda run: do(chunk(run, array, *index))


def in_file(name, do):
    return lambda run: do(run / name)


def swapped(array, one, other):
    return lambda run: swap(chunk(run, array, *one), chunk(run, array, *other))


def reverse(row):
    def change(values):
        values[row] = values[row, ::-1].copy()

    return change


def other_width(run):
    def change(node):
        node["attributes"]["kernels"]["semantic_rbf"]["sigma"] = 2.5

    edit_json(run / "tiles.zarr/last/zarr.json", change)


FAULTS = {
    "matrices: tiles that are not theirs": [
        (on(TILES, (0, 0, 1), Path.unlink), TILES, "missing"),
        (on(TILES, (0, 1, 2), truncate), TILES, "damaged"),
        (on(TILES, (0, 1, 1), flip), TILES, "damaged"),
        (foreign_tile((0, 2, 2)), TILES, "foreign"),
        (swapped(TILES, (0, 0, 2), (0, 0, 0)), TILES, "foreign"),
    ],
    "matrices: numbers that cannot be": [
        (altered(TILES, (0, 0, 1), add((0, 2, 3), 1e6)), TILES, "norms"),
        (altered(TILES, (0, 0, 2), put((0, 2, 3), np.nan)), TILES, "not-finite"),
        (altered(TILES, (0, 1, 2), put((2, 2, 3), -1.0)), TILES, "gap"),
        (altered(TILES, (0, 0, 0), add((0, 2, 3), -0.5)), TILES, "asymmetric"),
        (altered(TILES, (0, 1, 1), add((1, 2, 2), -0.01)), TILES, "norms"),
    ],
    "matrices: numbers that are not those of the features": [
        (altered(TILES, (0, 0, 1), add((0, 2, 3), 0.01)), TILES, "certificate"),
        (altered(TILES, (0, 0, 2), add((1, 2, 3), -0.01)), TILES, "identity"),
        (altered(TILES, (0, 1, 2), put((2, 2, 3), 1.0)), TILES, "gap"),
        (altered(TILES, (0, 2, 2), put((1, 2, 3), 1e6)), TILES, "norms"),
    ],
    "matrices: stored matrices": [
        (altered(COSINE, (0, 0), add((2, 3), 0.01)), COSINE, "kernel"),
        (on("rsm.zarr/last/matched", (0, 0), flip), "rsm.zarr/last/matched", "damaged"),
        (on("rsm.zarr/last/semantic_rbf", (0, 0), Path.unlink), "rsm.zarr/last/semantic_rbf", "missing"),
    ],
    "matrices: features": [
        (altered(FEATURES, (1, 0, 0), add((1, 2, 3), 0.5)), FEATURES, "features"),
        (altered(FEATURES, (0, 0, 0), put((1, 2, 3), np.nan)), FEATURES, "not-finite"),
    ],
    "matrices: features that cannot be read": [
        (on(FEATURES, (1, 0, 0), flip), FEATURES, "damaged"),
        (on(FEATURES, (0, 0, 0), Path.unlink), FEATURES, "missing"),
    ],
    "matrices: swapped features": [(swapped(FEATURES, (0, 0, 0), (1, 0, 0)), FEATURES, "foreign")],
    "matrices: what is derived of features": [
        (altered(NORMS, (0,), add(1, 0.5)), NORMS, "norms"),
        (altered(COUNTS, (1,), put(1, 99)), COUNTS, "features"),
    ],
    "matrices: coordinates": [
        (altered(f"{LAYER}/squared_norm_i", (0,), add(3, 1)), f"{LAYER}/squared_norm_i", "coordinates"),
        (altered(f"{LAYER}/labels_j", (0,), put(3, "other")), f"{LAYER}/labels_j", "coordinates"),
        (on(f"{LAYER}/image_i", (0,), flip), f"{LAYER}/image_i", "damaged"),
        (in_file(f"{LAYER}/group_i", shutil.rmtree), f"{LAYER}/group_i", "missing"),
        (on(f"{LAYER}/quantity", (0,), flip), f"{LAYER}/quantity", "damaged"),
        (altered(POOLED, (1, 0), add((1, 1), 0.5)), POOLED, "norms"),
    ],
    "matrices: a coordinate's description": [
        (in_file(f"{LAYER}/group_i/zarr.json", truncate), f"{LAYER}/group_i", "description"),
        (altered("rsm.zarr/last/image_i", (0,), put(3, "x")), "rsm.zarr/last/image_i", "coordinates"),
    ],
    "matrices: descriptions": [
        (in_file("run.json", truncate), "run.json", "damaged"),
        (in_file("summary.json", truncate), "summary.json", "damaged"),
        (in_file("tiles.zarr/zarr.json", truncate), "tiles.zarr", "description"),
        (in_file(f"{TILES}/zarr.json", truncate), TILES, "description"),
        (in_file(f"{POOLED}/zarr.json", truncate), POOLED, "description"),
        (in_file("rsm.zarr/last/zarr.json", truncate), "rsm.zarr/last", "description"),
    ],
    "matrices: files that are gone": [
        (in_file("run.copy.json", Path.unlink), "run.copy.json", "missing"),
        (in_file("images.parquet", Path.unlink), "images.parquet", "missing"),
        (in_file(f"{LAYER}/zarr.json", Path.unlink), LAYER, "missing"),
    ],
    "matrices: files cut short": [
        (in_file("images.parquet", truncate), "images.parquet", "damaged"),
        (in_file(f"{LAYER}/zarr.json", truncate), LAYER, "description"),
    ],
    "matrices: another image": [
        (lambda run: edit_manifest(run, "image_id", "x"), "images.parquet", "manifest")
    ],
    "matrices: other labels": [(lambda run: edit_manifest(run, "labels", ["other"]), LAYER, "coordinates")],
    "matrices: another width": [(other_width, LAYER, "description")],
    "queries: tiles": [
        (on(TILES, (0, 1, 0), Path.unlink), TILES, "missing"),
        (altered(TILES, (0, 0, 1), add((0, 2, 3), 0.01)), TILES, "certificate"),
    ],
    "queries: features": [(altered(QUERIES, (0, 0, 0), add((1, 2, 3), 0.5)), QUERIES, "features")],
    "unequal: tiles": [
        (altered(TILES, (0, 0, 1), put((1, 0, 1), 0.5)), TILES, "not-finite"),
        (altered(TILES, (0, 0, 2), put((1, 0, 0), np.nan)), TILES, "not-finite"),
        (altered(TILES, (0, 1, 2), add((0, 2, 3), 0.01)), TILES, "certificate"),
    ],
    "unequal: features": [
        (altered(COUNTS, (1,), put(1, 2)), FEATURES, "features"),
        (altered(FEATURES, (0, 0, 0), put((0, 5, 3), 1.0)), FEATURES, "features"),
    ],
    "neighbours: what cannot be read": [
        (on(GAPS, (1, 0), Path.unlink), GAPS, "missing"),
        (on(INDICES, (0, 0), flip), INDICES, "damaged"),
        (on(CANDIDATES, (0, 0, 1), flip), CANDIDATES, "damaged"),
        (in_file("neighbours.zarr/last/image_j", shutil.rmtree), "neighbours.zarr/last/image_j", "missing"),
    ],
    "neighbours: the wrong ones": [
        (altered(INDICES, (1, 0), put((2, 0), 18)), INDICES, "neighbours"),
        (altered(INDICES, (0, 0), reverse(2)), INDICES, "neighbours"),
        (altered(MATCHED, (2, 0), add((2, 2), -0.01)), MATCHED, "identity"),
    ],
    "neighbours: the wrong numbers": [
        (altered(GAPS, (1, 0), put((2, 2), -0.01)), MATCHED, "gap"),
        (altered(CANDIDATES, (0, 0, 1), put((2, 0, 0), 1e6)), CANDIDATES, "norms"),
        (altered(FLOORS, (0, 0, 0), put((0, 2, 2), 0.9999)), FLOORS, "floors"),
    ],
}
"""Sets of faults of a run, by its name and what they are of, each with the array and the kind that report it.

Those of a set do not hide each other: none is in what another one makes unknown, as wrong features do with what follows
from them. So every kind of fault is found beside others, and repaired with them, in a third of the runs.
"""


def faults_of(report):
    return {(fault.array, str(fault.kind)) for fault in report.faults}


def results(shop, run):
    """Return the hashes of all results; candidates and floors depend on the order of work."""
    tree = shop.tree(run)
    return {
        name: tree[name]
        for name in tree
        if name.split("/")[0]
        in ("features.zarr", "tiles.zarr", "rsm.zarr", "neighbours.zarr", "images.parquet")
    }


@pytest.mark.parametrize("name", MAKERS)
def test_a_finished_run_is_sound(name, originals):
    report = srs.open_run(originals(name)).verify(**EVERYTHING, images=True)
    assert (report.faults, report.unchecked, report.incomplete, report.exit_code) == ((), (), (), 0)


@pytest.mark.parametrize("what", FAULTS)
def test_faults_are_found_and_repaired(what, copy, originals, shop):
    name = what.partition(":")[0]
    run = copy(name)
    for spoil, _, _ in FAULTS[what]:
        spoil(run)
    expected = {(array, kind) for _, array, kind in FAULTS[what]}
    found = srs.open_run(run).verify(**EVERYTHING)
    assert found.exit_code == 1
    assert expected <= faults_of(found)
    assert len({(fault.array, fault.place, fault.kind) for fault in found.faults}) >= len(FAULTS[what])
    report = verify_and_repair(run, **EVERYTHING)
    assert report.exit_code == 0
    assert all(fault.repaired for fault in report.faults)
    assert faults_of(found) <= faults_of(report)
    assert results(shop, run) == results(shop, originals(name))


def test_a_repair_warns_of_a_lost_record_in_one_way(copy, monkeypatch, caplog):
    run = copy("matrices")
    (run / "run.json").unlink()
    monkeypatch.chdir(run.parent)
    assert verify_and_repair(run.name, fast=True).exit_code == 0
    (warning,) = {text for text in caplog.messages if "its copy run.copy.json is used" in text}
    assert warning.startswith(f"{run}/run.json: ")


def test_an_image_that_has_changed_is_named_and_left_alone(copy, originals):
    run = copy("images")
    image = originals("images").parent / "images/class0/000.png"
    before, stat = image.read_bytes(), image.stat()
    try:
        image.write_bytes((image.parent / "003.png").read_bytes())
        report = verify_and_repair(run, images=True)
    finally:
        image.write_bytes(before)
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (fault,) = report.faults
    assert (fault.array, fault.place, fault.kind) == ("images.parquet", "class0/000.png", "image")
    assert report.exit_code == 1


def test_images_that_are_gone_cannot_be_checked(copy, originals):
    run, folder = copy("images"), originals("images").parent / "images"
    (folder / "class0/000.png").rename(folder / "class0/000")
    try:
        report = srs.open_run(run).verify(images=True)
    finally:
        (folder / "class0/000").rename(folder / "class0/000.png")
    assert (report.faults, report.exit_code) == ((), 2)
    assert "no longer there" in report.unchecked[0]


def test_features_that_are_not_those_of_the_images_are_found_by_extraction_alone(copy):
    run = copy("images")
    for name, index in (("features", (0, 0, 0)), ("squared_norm", (0,)), ("pooled", (0, 0))):
        # Consistent, but of other images.
        alter(
            run,
            f"features.zarr/images/layer4/{name}",
            index,
            lambda v: v.__setitem__(slice(2), v[1::-1].copy()),
        )
    assert ("features.zarr/images/layer4/features", "features") in faults_of(
        srs.open_run(run).verify(images=True, sample=0)
    )


def test_nothing_is_removed_where_inputs_are_gone(copy, originals, shop):
    run, source = copy("matrices"), originals("matrices").parent / "z.npy"
    flip(chunk(run, FEATURES, 1, 0, 0))
    before = shop.tree(run)
    source.rename(source.with_suffix(".gone"))
    try:
        with pytest.raises(InputError, match=r"no longer there.*images/last"):
            verify_and_repair(run)
    finally:
        source.with_suffix(".gone").rename(source)
    assert shop.tree(run) == before


def test_tiles_are_repaired_without_inputs(copy, originals, shop):
    run, source = copy("matrices"), originals("matrices").parent / "z.npy"
    flip(chunk(run, TILES, 0, 0, 1))
    source.rename(source.with_suffix(".gone"))
    try:
        assert verify_and_repair(run).exit_code == 0
    finally:
        source.with_suffix(".gone").rename(source)
    assert results(shop, run) == results(shop, originals("matrices"))


def test_a_repair_discards_what_the_page_has_made_of_wrong_tiles(copy, monkeypatch):
    def look():
        live = LiveRun(srs.open_run(run))
        content, share = live.tile("last", "cosine", "given", Tile(0, 0, 0))
        live.close()
        assert share == 1
        return content

    run = copy("queries")
    expected = look()
    shutil.rmtree(run / "view")
    alter(run, TILES, (0, 0, 1), add((0, 2, 3), 1.0))
    assert look() != expected
    with contextlib.closing(LiveRun(srs.open_run(run))) as live:  # of a server that runs meanwhile
        assert live.tile("last", "cosine", "given", Tile(0, 0, 0))[0] != expected
        assert live.current() is live
        monkeypatch.setattr("semrsm_dist.report.view.live.LOOK_SECONDS", 0.0)
        assert live.current() is live
        assert verify_and_repair(run, **EVERYTHING).exit_code == 0
        assert look() == expected
        with contextlib.closing(live.current()) as now:
            assert now.tile("last", "cosine", "given", Tile(0, 0, 0)) == (expected, 1.0)


def test_a_run_of_a_cluster_that_is_gone_is_repaired_by_another_engine(copy, originals, shop):
    run = copy("matrices")
    directory, record = RunDirectory(run), srs.open_run(run).record
    config = record.config | {"engine": "ray", "address": "192.0.2.1:6379"}
    with directory.locked():
        directory.write_record(record.model_copy(update={"config": config}))
    flip(chunk(run, TILES, 0, 0, 1))
    assert verify_and_repair(run, settings={"engine": "local"}).exit_code == 0
    assert results(shop, run) == results(shop, originals("matrices"))


def test_the_command_exits_by_what_it_finds_and_lists_faults_for_programs(copy, shop):
    run = copy("matrices")
    assert shop.command("verify", run, "--fast").returncode == 0
    flip(chunk(run, TILES, 0, 0, 1))
    found = shop.command("verify", run, "--json", "--seed", "7")
    assert found.returncode == 1
    report = json.loads(found.stdout)
    assert (report["seed"], report["sound"]) == (7, False)
    (fault,) = report["faults"]
    assert fault.keys() == {"array", "layer", "place", "kind", "message", "repaired"}
    assert (fault["array"], fault["layer"], fault["place"]) == (TILES, "last", "0.0.1")
    assert (fault["kind"], fault["repaired"]) == ("damaged", False)
    repaired = shop.command("verify", run, "--repair")
    assert repaired.returncode == 0
    assert "1 chunk of last/tiles" in repaired.stderr
    assert "repaired: tiles.zarr/last/tiles 0.0.1: damaged" in repaired.stdout
    assert shop.command("verify", run, "--sample", "-1").returncode == 2
    assert shop.command("verify", shop.path / "nothing").returncode == 2


def test_an_unfinished_run_is_sound_as_far_as_it_has_come(shop):
    document = shop.of_features("run", shop.save("z.npy", grouped(40)), matching={"tile": 8})
    assert shop.interrupt(document, "matching", 100)
    report = srs.open_run(document["run"]).verify()
    assert (report.faults, report.exit_code) == ((), 3)
    assert report.incomplete
    truncate(shop.tiles(Path(document["run"]))[0])
    assert verify_and_repair(document["run"]).exit_code == 0


@pytest.mark.parametrize("name", ["matrices", "neighbours"])
def test_a_run_that_was_interrupted_before_its_results_has_no_fault(name, copy):
    run = copy(name)
    (run / "summary.json").unlink()
    for folder in ("tiles.zarr", "neighbours.zarr", "candidates.zarr", "rsm.zarr"):
        shutil.rmtree(run / folder, ignore_errors=True)
    report = srs.open_run(run).verify()
    assert (report.faults, report.exit_code) == ((), 3)


def test_while_a_driver_works_nothing_is_missing_and_nothing_repaired(copy):
    run = copy("matrices")
    chunk(run, TILES, 0, 0, 1).unlink()
    flip(chunk(run, TILES, 0, 1, 1))
    with RunDirectory(run).locked():
        report = srs.open_run(run).verify(**EVERYTHING)
        assert {fault.kind for fault in report.faults} == {"damaged"}
        with pytest.raises(ResumeError, match="another driver"):
            verify_and_repair(run)


def test_a_driver_does_not_start_while_a_run_is_verified(copy, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.1)
    run = copy("matrices")
    with (
        RunDirectory(run).shared(),
        pytest.raises(ResumeError, match="being verified"),
        RunDirectory(run).locked(),
    ):
        pass


def test_the_same_seed_draws_the_same_pairs(copy):
    run = copy("matrices")
    alter(run, TILES, (0, 0, 1), lambda values: np.multiply(values, 0.999, out=values))
    first, second = (srs.open_run(run).verify(sample=50, seed=3).faults for _ in range(2))
    assert first == second != ()


WAYS = [truncate, flip, lambda path: path.write_bytes(b""), Path.unlink]


@pytest.mark.parametrize("first", range(len(WAYS)))
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("matrices", [(TILES, (0, 0, 1)), (COSINE, (0, 0)), (f"{LAYER}/image_i", (0,))]),
        ("neighbours", [(INDICES, (1, 0)), (MATCHED, (0, 0))]),
    ],
)
def test_a_finished_run_that_is_started_again_notices_what_was_written(
    name, places, first, copy, originals, shop
):
    run = copy(name)
    for number, (array, index) in enumerate(places):
        WAYS[(first + number) % len(WAYS)](chunk(run, array, *index))
    srs.run(recorded_config(RunDirectory(run), srs.open_run(run).record))
    assert srs.open_run(run).verify(**EVERYTHING).exit_code == 0
    assert results(shop, run) == results(shop, originals(name))


def test_a_finished_run_does_not_need_its_features(copy, originals):
    run, source = copy("matrices"), originals("matrices").parent / "z.npy"
    truncate(chunk(run, FEATURES, 1, 0, 0))
    source.rename(source.with_suffix(".gone"))
    try:
        summary = srs.run(recorded_config(RunDirectory(run), srs.open_run(run).record)).summary()
    finally:
        source.with_suffix(".gone").rename(source)
    assert any("semrsm verify --repair" in warning for warning in summary["warnings"])
    assert chunk(run, FEATURES, 1, 0, 0).exists()
