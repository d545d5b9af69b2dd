"""The final matrices, for xarray: whole, with coordinates, complete only when they are."""

import shutil

import numpy as np
import pytest
import xarray as xr
import zarr
from matplotlib.figure import Figure
from sklearn.preprocessing import LabelEncoder

from semrsm_dist.errors import IncompleteError, StorageError
from semrsm_dist.store import chunks
from semrsm_dist.store.datasets import open_dataset
from semrsm_dist.store.matrices import COORDINATES, MatrixStore, gather_metadata

SHAPE, SIDE = (5, 7), 3
TILES = [(row, column) for row in range(2) for column in range(3)]
VALUES = np.random.default_rng(0).normal(size=SHAPE)
IDS = [f"größe/{index}.png" for index in range(7)]
LABELS = ["", "a|b", "ü", "x y", "", "1", "日本"]


def part(tile):
    return tuple(slice(SIDE * i, min(SIDE * (i + 1), n)) for i, n in zip(tile, SHAPE, strict=True))


def write_all(store, name="matched", values=VALUES):
    for tile in TILES:
        store.write(name, tile, values[part(tile)])


def assemble(root, names=("matched", "gap"), attributes=None):
    store = MatrixStore(root, "blocks.0")
    store.begin({"layer": "blocks.0", **(attributes or {})}, names)
    for scale, name in enumerate(names, 1):
        store.add_matrix(name, SHAPE, SIDE, {"description": name})
        write_all(store, name, scale * VALUES)
    for dimension, suffix, n in (("image_i", "_i", 5), ("image_j", "_j", 7)):
        store.write_coordinate(dimension, dimension, IDS[:n])
        store.write_coordinate(f"labels{suffix}", dimension, LABELS[:n])
        store.write_coordinate(f"group{suffix}", dimension, [""] * n)
        store.write_coordinate(f"squared_norm{suffix}", dimension, np.arange(n) / 3)
    return store


def test_a_complete_layer_opens_with_its_coordinates(tmp_path):
    store = assemble(tmp_path)
    store.finish()
    data = open_dataset(store.open())
    assert data["matched"].dims == ("image_i", "image_j")
    np.testing.assert_array_equal(data["matched"].values, VALUES)
    np.testing.assert_array_equal(data["gap"].values, 2 * VALUES)
    assert data["image_j"].values.tolist() == IDS
    assert data["labels_j"].values.tolist() == LABELS
    assert data["squared_norm_i"].dtype == np.float64
    # Of a type that matplotlib and scikit-learn take; `StringDType` is not.
    texts = [data[f"{name}_{side}"] for name in ("image", "labels", "group") for side in "ij"]
    assert [text.dtype.kind for text in texts] == ["U"] * 6
    assert data["labels_i"].values.astype(str).tolist() == LABELS[:5]
    assert LabelEncoder().fit_transform(data["labels_i"].values).shape == (5,)
    data["matched"].plot(ax=Figure().add_subplot())
    assert data["matched"].attrs["description"] == "matched"
    assert set(COORDINATES) <= set(data["matched"].coords)
    assert float(data["matched"].sel(image_i=IDS[4], image_j=IDS[6])) == VALUES[4, 6]


def test_a_damaged_description_of_the_root_is_named_and_made_anew_once_it_is_deleted(tmp_path):
    assemble(tmp_path).finish()
    gather_metadata(tmp_path)
    file = tmp_path / "zarr.json"
    before = file.read_bytes()
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(StorageError, match=r"/zarr\.json: not the description .*delete this file and start"):
        gather_metadata(tmp_path)
    file.unlink()
    gather_metadata(tmp_path)
    assert file.read_bytes() == before


def test_a_reader_needs_nothing_but_xarray(tmp_path):
    assemble(tmp_path / "rsm.zarr").finish()
    gather_metadata(tmp_path / "rsm.zarr")
    alone = xr.open_zarr(tmp_path / "rsm.zarr" / "blocks.0", chunks=None)
    grouped = xr.open_zarr(tmp_path / "rsm.zarr", group="blocks.0", chunks=None)
    xr.testing.assert_identical(alone.load(), grouped.load())


def test_what_is_not_finished_does_not_open(tmp_path):
    store = MatrixStore(tmp_path, "blocks.0")
    for step in (lambda: None, lambda: assemble(tmp_path)):
        step()
        assert not store.is_complete()
        with pytest.raises(
            IncompleteError, match=r"layer 'blocks\.0' are not assembled yet; start the run's command"
        ):
            store.open()
    store.finish()
    assert store.is_complete()


def test_beginning_again_makes_it_incomplete_and_drops_other_matrices(tmp_path):
    assemble(tmp_path, ("matched", "gap", "semantic_rbf"), {"recipe": {"kernels": ["rbf"]}}).finish()
    store = MatrixStore(tmp_path, "blocks.0")
    assert store.read_attributes()["recipe"] == {"kernels": ["rbf"]}
    store.begin({"recipe": {"kernels": []}}, ("matched", "gap"))
    assert not store.is_complete()
    again = assemble(tmp_path, attributes={"recipe": {"kernels": []}})
    again.finish()
    gather_metadata(tmp_path)
    data = open_dataset(MatrixStore(tmp_path, "blocks.0").open())
    assert set(data.data_vars) == {"matched", "gap"}
    assert "semantic_rbf" not in xr.open_zarr(tmp_path, group="blocks.0", chunks=None)
    np.testing.assert_array_equal(data["matched"].values, VALUES)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated metadata")
def test_a_kill_before_the_metadata_is_gathered_does_no_harm(tmp_path, monkeypatch):
    store = assemble(tmp_path)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr, "consolidate_metadata", die)
    with pytest.raises(KeyboardInterrupt):
        store.finish()
    monkeypatch.undo()
    if store.is_complete():
        np.testing.assert_array_equal(open_dataset(store.open())["matched"].values, VALUES)
    assemble(tmp_path).finish()
    np.testing.assert_array_equal(open_dataset(store.open())["matched"].values, VALUES)


def test_coordinates_are_replaced(tmp_path):
    store = assemble(tmp_path)
    store.write_coordinate("labels_i", "image_i", ["new"] * 5)
    store.write_coordinate("squared_norm_i", "image_i", np.full(5, 0.5))
    store.finish()
    data = open_dataset(store.open())
    assert data["labels_i"].values.tolist() == ["new"] * 5
    assert data["squared_norm_i"].values.tolist() == [0.5] * 5


def test_a_matrix_that_is_made_again_is_described_anew(tmp_path):
    for sigma in (2.0, 3.0):
        store = assemble(tmp_path)
        store.add_matrix("gap", SHAPE, SIDE, {"sigma": sigma})
        store.finish()
        assert store.open().matrix("gap").attributes == {"sigma": sigma}
        assert open_dataset(store.open())["gap"].attrs == {"sigma": sigma}


@pytest.mark.filterwarnings("error")
def test_an_array_that_a_full_disk_cut_short_is_made_anew(tmp_path):
    store = assemble(tmp_path)
    for name in ("group_i", "semantic_rbf"):
        shutil.rmtree(store.group / name, ignore_errors=True)
        (store.group / name).mkdir()
    assemble(tmp_path).finish()
    gather_metadata(tmp_path)
    assert not (store.group / "semantic_rbf").exists()
    np.testing.assert_array_equal(open_dataset(store.open())["matched"].values, VALUES)


def test_layers_share_a_root(tmp_path):
    for layer in ("a", "b"):
        store = MatrixStore(tmp_path, layer)
        store.begin({}, ["matched"])
        store.add_matrix("matched", SHAPE, SIDE, {})
        write_all(store, values=VALUES if layer == "a" else -VALUES)
        store.finish()
    gather_metadata(tmp_path)
    for layer, sign in (("a", 1), ("b", -1)):
        values = xr.open_zarr(tmp_path, group=layer, chunks=None)["matched"].values
        np.testing.assert_array_equal(values, sign * VALUES)


def test_wrong_tiles_are_refused(tmp_path):
    store = assemble(tmp_path)
    for tile, values in (((0, 0), np.zeros((2, 3))), ((1, 2), np.zeros((3, 3))), ((2, 0), np.zeros((3, 3)))):
        with pytest.raises(ValueError, match=r"takes float64|no chunk"):
            store.write("matched", tile, values)
    with pytest.raises(ValueError, match="not float32"):
        store.write("matched", (0, 0), np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(StorageError, match="no such array"):
        store.write("nothing", (0, 0), np.zeros((3, 3)))


def test_mirror_images_may_be_views(tmp_path):
    store = MatrixStore(tmp_path, "a")
    store.begin({}, ["matched"])
    store.add_matrix("matched", (6, 6), 3, {})
    store.write("matched", (1, 0), VALUES[:3, :3].T)
    np.testing.assert_array_equal(chunks.open_array(store.group, "matched")[3:, :3], VALUES[:3, :3].T)


def test_a_damaged_description_is_told(tmp_path):
    store = assemble(tmp_path)
    store.finish()
    file = store.group / "zarr.json"
    file.write_text(file.read_text()[:40])
    for attempt in (store.is_complete, store.open, lambda: store.begin({}, ["matched"])):
        with pytest.raises(
            StorageError, match=r"blocks\.0/zarr\.json: not the description of what should be here"
        ):
            attempt()
    file.unlink()
    assert not store.is_complete()
    assemble(tmp_path).finish()
    np.testing.assert_array_equal(open_dataset(store.open())["gap"].values, 2 * VALUES)


@pytest.mark.parametrize("lost", ["matched/c/0/1", "gap/c/1/2", "image_i/c/0", "labels_i/c/0", "group_j/c/0"])
def test_a_chunk_that_has_gone_makes_the_layer_incomplete(tmp_path, lost):
    store = assemble(tmp_path)
    store.finish()
    (store.group / lost).unlink()
    assert not store.is_complete()
    with pytest.raises(IncompleteError, match=f"{lost}: .*this is missing; start the run's command again"):
        store.open()


def test_a_matrix_that_has_gone_makes_the_layer_incomplete(tmp_path):
    store = assemble(tmp_path)
    store.finish()
    shutil.rmtree(store.group / "gap")
    assert not store.is_complete()
    with pytest.raises(IncompleteError, match=r"gap: .*this is missing"):
        store.open()


@pytest.mark.filterwarnings("error")
def test_a_damaged_description_of_a_matrix_is_told_by_who_reads_it_and_heals(tmp_path):
    store = assemble(tmp_path)
    store.finish()
    file = store.group / "gap" / "zarr.json"
    file.write_text(file.read_text()[:40])
    with pytest.raises(StorageError, match=r"gap/zarr\.json: not the description .*delete this file"):
        store.open().matrix("gap")
    file.unlink()
    assert not store.is_complete()
    again = assemble(tmp_path)
    again.finish()
    np.testing.assert_array_equal(again.open().matrix("gap").read((slice(None), slice(None))), 2 * VALUES)


def test_a_damaged_chunk_is_named_with_what_helps(tmp_path):
    store = assemble(tmp_path)
    store.finish()
    file = store.group / "matched" / "c" / "1" / "2"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    data = open_dataset(store.open())["matched"]
    np.testing.assert_array_equal(data[:3].values, VALUES[:3])
    for part in (data, data[3], data[2:, 6], data[[0, 4]], data.isel(image_i=[4], image_j=[6, 0])):
        with pytest.raises(
            StorageError, match=r"matched/c/1/2: .* delete this file and start the run's command"
        ):
            part.to_numpy()
    np.testing.assert_array_equal(data[3:, :6].values, VALUES[3:, :6])


@pytest.mark.parametrize(
    "key",
    [(slice(1, 5, 2),), (3,), (-1, 2), ([4, 0, 2],), ([3, 1], slice(5, None)), (slice(None), [6, 6, 0])],
)
def test_parts_are_those_of_the_matrix(tmp_path, key):
    store = assemble(tmp_path)
    store.finish()
    np.testing.assert_array_equal(open_dataset(store.open())["matched"][key].values, VALUES[key])
