"""Solved tiles: three numbers a pair, there or not there, and damaged ones found and removed."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.errors import StorageError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import arrays, chunks
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.inventory import Inventory
from semrsm_dist.store.tiles import QUANTITIES, TileStore

LAYOUT = Layout(7, 7, 3, symmetric=True)
rng = np.random.default_rng(0)


def tile_of(layout, row, column):
    shape = [part.stop - part.start for part in (layout.rows(row), layout.columns(column))]
    return [rng.normal(size=shape) for _ in QUANTITIES]


def filled(root, layout=LAYOUT, layer="layer1.0"):
    store = TileStore(root, layer)
    store.create(layout, "float64", "id")
    tiles = {tile: tile_of(layout, *tile) for tile in layout.tiles()}
    for tile, (matched, identity, gap) in tiles.items():
        store.write(tile, matched, identity, matched + gap)
        tiles[tile][2] = (matched + gap) - matched
    return store, tiles


def present(store, layout=LAYOUT):
    return {(int(row), int(column)) for row, column in np.argwhere(store.present(layout))}


def file_of(root, store, tile):
    return root / store.layer / "tiles" / "c" / "0" / str(tile[0]) / str(tile[1])


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_tiles_come_back_and_are_counted(tmp_path_factory, n_rows, n_columns, side, symmetric):
    layout = Layout(n_rows, n_rows if symmetric else n_columns, side, symmetric)
    store, tiles = filled(tmp_path_factory.mktemp("blocks"), layout)
    assert present(store, layout) == set(layout.tiles())
    for tile, quantities in tiles.items():
        np.testing.assert_array_equal(store.read(tile), quantities)


def test_the_order_of_the_quantities_is_on_disk(tmp_path):
    store, _ = filled(tmp_path)
    assert QUANTITIES == ("matched", "identity", "gap")
    assert tuple(arrays.open_array(store.group, "tiles").attrs["quantities"]) == QUANTITIES
    ones = np.ones((3, 3))
    store.write((0, 0), ones, 2 * ones, 4 * ones)
    np.testing.assert_array_equal(arrays.open_array(store.group, "tiles")[:, 0, 0], [1, 2, 3])


def test_a_tile_that_is_not_there_is_an_error_and_not_nan(tmp_path):
    store = TileStore(tmp_path, "a")
    store.create(LAYOUT, "float64", "id")
    assert present(store) == set()
    with pytest.raises(StorageError, match=r"a/tiles/c/0/0/1: this chunk is missing"):
        store.read((0, 1))
    with pytest.raises(ValueError, match="but no chunk"):
        store.read((0, 3))


def test_an_undefined_tile_is_there(tmp_path):
    store, _ = filled(tmp_path)
    store.write((0, 1), *[np.full((3, 3), np.nan)] * 3)
    assert np.isnan(store.read((0, 1))).all()
    assert store.remove_damaged(sorted(present(store))) == []


def test_damaged_tiles_are_removed_and_no_others(tmp_path):
    store, tiles = filled(tmp_path)
    damage = {(0, 0): b"", (0, 2): None, (2, 2): b"\0" * 50}
    for tile, content in damage.items():
        file = file_of(tmp_path, store, tile)
        file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    assert store.remove_damaged(sorted(present(store))) == sorted(damage)
    assert present(store) == set(LAYOUT.tiles()) - set(damage)
    assert store.remove_damaged(sorted(present(store))) == []
    for tile in present(store):
        np.testing.assert_array_equal(store.read(tile), tiles[tile])


def test_a_disk_that_fails_removes_nothing(tmp_path, monkeypatch):
    store, _ = filled(tmp_path)

    def fail(array, region):
        raise StorageError("cannot be read (Input/output error)")

    monkeypatch.setattr(chunks, "read_region", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        store.remove_damaged(sorted(present(store)))
    assert present(store) == set(LAYOUT.tiles())


@pytest.mark.parametrize(
    "shapes",
    [[(3, 3), (3, 3), (3, 2)], [(3, 2)] * 3, [(3,)] * 3, [(1, 3)] * 3],
)
def test_wrong_shapes_write_nothing(tmp_path, shapes):
    store = TileStore(tmp_path, "a")
    store.create(LAYOUT, "float64", "id")
    with pytest.raises(ValueError, match="shape"):
        store.write((0, 1), *[np.zeros(shape) for shape in shapes])
    assert present(store) == set()


def test_single_precision_is_refused(tmp_path):
    store = TileStore(tmp_path, "a")
    store.create(LAYOUT, "float64", "id")
    with pytest.raises(ValueError, match="not float32"):
        store.write((0, 0), *[np.zeros((3, 3), dtype=np.float32)] * 3)


def test_another_size_or_type_is_not_overwritten(tmp_path):
    store, _ = filled(tmp_path)
    for sizes, dtype in (((7, 7, 4), "float64"), ((7, 7, 3), "float32")):
        with pytest.raises(StorageError, match="nothing was overwritten"):
            store.create(Layout(*sizes, symmetric=True), dtype, "id")
    store.create(LAYOUT, "float64", "id")
    assert present(store) == set(LAYOUT.tiles())


def test_layers_do_not_meet(tmp_path):
    one, _ = filled(tmp_path, layer="blocks.1")
    ten = TileStore(tmp_path, "blocks.10")
    ten.create(LAYOUT, "float64", "id")
    assert present(ten) == set()
    assert present(one) == set(LAYOUT.tiles())


def changed(store, inventory):
    return {tuple(tile) for tile in np.argwhere(store.changed(LAYOUT, inventory))}


def test_a_tile_has_changed_if_its_size_or_time_is_another_or_it_was_not_there(tmp_path):
    run = RunDirectory(tmp_path)
    store, _ = filled(run.tiles)
    files = {tile: file_of(run.tiles, store, tile) for tile in LAYOUT.tiles()}
    files[0, 1].unlink()
    before = Inventory.take(run, run.tiles)
    assert changed(store, before) == set()
    assert changed(store, Inventory(run)) == set(LAYOUT.tiles()) - {(0, 1)}
    before.write()
    known = Inventory.read(run)
    assert known.files == before.files
    store.write((0, 1), *(np.zeros((3, 3)) for _ in range(3)))
    os.utime(files[1, 2], (0, 1e9))
    stat = files[0, 0].stat()
    files[0, 0].write_bytes(b"x")
    os.utime(files[0, 0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files[0, 2].unlink()
    (files[0, 1].parent / "99").write_bytes(b"no tile of the layout")
    assert changed(store, known) == {(0, 0), (0, 1), (1, 2)}
    assert known.find_damaged(run.tiles) == {(store.group, "tiles"): {(0, 0, 0)}}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}"])
def test_without_an_inventory_everything_is_new(tmp_path, content):
    (tmp_path / "inventory.parquet").write_bytes(content)
    assert Inventory.read(RunDirectory(tmp_path)).files == {}


def test_files_that_are_no_tiles_of_the_layout_do_not_count(tmp_path):
    store, tiles = filled(tmp_path)
    for strange in ((0, 3), (3, 0), (1, 0), (0, "x")):
        file = file_of(tmp_path, store, strange)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
    assert present(store) == tiles.keys()


def test_a_killed_writer_s_part_is_no_tile(tmp_path):
    store, _ = filled(tmp_path)
    file = file_of(tmp_path, store, (1, 2))
    file.rename(file.with_name("2.5f0e.partial"))
    assert present(store) == set(LAYOUT.tiles()) - {(1, 2)}


@pytest.mark.parametrize("how", ["deleted", "truncated", "folder"])
def test_a_layer_is_not_finished_without_the_description_of_its_tiles(tmp_path, how):
    store, _ = filled(tmp_path)
    coordinates = {"image_i": ("image_i", list("abcdefg"))}
    description = store.group / "tiles" / "zarr.json"
    content = description.read_bytes()
    description.unlink()
    if how == "folder":
        description.mkdir()
    elif how == "truncated":
        description.write_bytes(content[:50])
    with pytest.raises(StorageError, match="start the run's command"):
        store.finish(coordinates, {}, "id")
    assert not store.is_finished()
    store.create(LAYOUT, "float64", "id")
    store.finish(coordinates, {}, "id")
    assert store.is_done(LAYOUT)


@pytest.mark.parametrize("place", ["the tile", "its row"])
def test_what_is_in_the_place_of_a_tile_is_no_tile_and_is_moved_aside(tmp_path, place):
    store, tiles = filled(tmp_path)
    file = file_of(tmp_path, store, (1, 2))
    shutil.rmtree(file.parent)
    if place == "the tile":
        file.mkdir(parents=True)
    else:
        file.parent.touch()
    assert present(store) == {tile for tile in tiles if tile[0] != 1}
    store.write((1, 2), *tiles[1, 2])
    np.testing.assert_array_equal(store.read((1, 2))[:2], tiles[1, 2][:2])


def test_a_folder_that_cannot_be_listed_says_nothing_about_its_tiles(tmp_path):
    store, _ = filled(tmp_path)
    folder = file_of(tmp_path, store, (0, 0)).parent
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)  # a loop, which the file system refuses
    with pytest.raises(StorageError, match=r"0/0: cannot be listed .* check the disk .* repeat the command"):
        store.present(LAYOUT)
