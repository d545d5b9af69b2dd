"""Chunks say what they are: another one in its place is found, named and never read; any reader of Zarr reads on."""

import shutil

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.errors import StorageError
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import arrays, chunk_labels, chunks
from semrsm_dist.store.features import FEATURES, POOLED, SQUARED_NORM, TOKEN_COUNT, FeatureStore
from semrsm_dist.store.tiles import TileStore

LAYOUT = Layout(7, 7, 3, symmetric=True)
Z = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)


def tiles_in(run, layer="layer1", run_id="a" * 16):
    store = TileStore(run / "tiles.zarr", layer)
    store.create(LAYOUT, "float64", run_id)
    generator = np.random.default_rng(len(str(run)) + len(layer))
    for row, column in LAYOUT.tiles():
        shape = [part.stop - part.start for part in (LAYOUT.rows(row), LAYOUT.columns(column))]
        numbers = generator.normal(size=(3, *shape))
        store.write((row, column), numbers[0], numbers[1], numbers[0] + numbers[2] ** 2)
    return store


def file_of(store, tile):
    return store.group.joinpath("tiles", "c", "0", *map(str, tile))


def test_swapped_tiles_are_found_and_named(tmp_path):
    store = tiles_in(tmp_path)
    one, two = file_of(store, (0, 1)), file_of(store, (1, 2))
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    for tile, there in (((0, 1), "1/2"), ((1, 2), "0/1")):
        with pytest.raises(chunks.DamagedChunkError) as caught:
            store.read(tile)
        assert caught.value.file == file_of(store, tile)
        assert (
            caught.value.fault == f"is not the one that belongs here, but tiles.zarr/layer1/tiles/c/0/{there}"
        )
    np.testing.assert_array_equal(store.read((0, 0)).shape, (3, 3, 3))
    assert store.remove_damaged(LAYOUT.tiles()) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("layer", "run_id", "named"),
    [
        ("layer2", "a" * 16, "tiles.zarr/layer2/tiles/c/0/0/1"),
        ("layer1", "b" * 16, f"tiles.zarr/layer1/tiles/c/0/0/1 of another run ({'b' * 16})"),
    ],
)
def test_a_tile_of_another_layer_or_run_is_found_and_named(tmp_path, layer, run_id, named):
    store, other = tiles_in(tmp_path), tiles_in(tmp_path / "other", layer, run_id)
    shutil.copy(file_of(other, (0, 1)), file_of(store, (0, 1)))
    with pytest.raises(StorageError, match="layer1/tiles/c/0/0/1: this chunk is not the one") as caught:
        store.read((0, 1))
    assert named in str(caught.value)


def test_a_tile_of_a_copy_of_the_run_fits_and_equal_runs_have_equal_files(tmp_path):
    store = tiles_in(tmp_path / "a")
    copy = tiles_in(tmp_path / "b")
    assert file_of(store, (0, 1)).read_bytes() == file_of(copy, (0, 1)).read_bytes()
    shutil.copy(file_of(copy, (0, 1)), file_of(store, (0, 1)))
    np.testing.assert_array_equal(store.read((0, 1)), copy.read((0, 1)))


def test_a_chunk_without_a_label_is_damaged(tmp_path):
    store = tiles_in(tmp_path)
    zarr.open_array(store.group / "tiles", mode="r+")[:, :3, 3:6] = np.ones((3, 3, 3))
    fault = chunks.find_fault(arrays.open_array(store.group, "tiles"), (0, 0, 1))
    assert fault == "holds damaged bytes (its label is damaged or missing)"


def test_an_array_of_another_layer_or_run_is_not_read(tmp_path):
    one, two = tiles_in(tmp_path, "layer1"), tiles_in(tmp_path, "layer2")
    shutil.rmtree(one.group / "tiles")
    shutil.copytree(two.group / "tiles", one.group / "tiles")
    with pytest.raises(StorageError, match=r"zarr\.json: the description of another array .*/layer2/tiles"):
        TileStore(one.root, "layer1").read((0, 1))
    with pytest.raises(StorageError, match=r"type and origin .* is there, .* is needed"):
        TileStore(one.root, "layer1").create(LAYOUT, "float64", "a" * 16)  # its chunks are another's, too
    with pytest.raises(StorageError, match=r"type and origin .* is there, .* is needed"):
        TileStore(two.root, "layer2").create(LAYOUT, "float64", "b" * 16)


def test_every_reader_of_zarr_passes_over_labels(tmp_path):
    store = tiles_in(tmp_path)
    expected = np.full((3, 7, 7), np.nan)
    for row, column in LAYOUT.tiles():
        expected[:, LAYOUT.rows(row), LAYOUT.columns(column)] = store.read((row, column))
    np.testing.assert_array_equal(zarr.open_array(store.group / "tiles", mode="r")[:], expected)
    np.testing.assert_array_equal(
        zarr.open_group(store.group, mode="r", use_consolidated=False)["tiles"][:], expected
    )
    with xr.open_dataset(store.group, engine="zarr", consolidated=False) as dataset:
        np.testing.assert_array_equal(dataset["tiles"].values, expected)
    encoded = file_of(store, (0, 1)).read_bytes()[:-4]  # without the checksum
    decoded = numcodecs.Blosc().decode(numcodecs.Zstd().decode(encoded))
    np.testing.assert_array_equal(np.frombuffer(decoded).reshape(3, 3, 3), store.read((0, 1)))


@pytest.mark.parametrize("name", [TOKEN_COUNT, SQUARED_NORM, POOLED, FEATURES])
def test_swapped_feature_chunks_are_found_and_made_again(tmp_path, name):
    store = FeatureStore(tmp_path / "features.zarr", "images", "größe.1")
    store.create(6, 4, 3, 2, "float32", "a" * 16)
    for number in range(3):
        store.write_chunk(number, Z[2 * number : 2 * number + 2])
    files = [next(path for path in (store.group / name / "c" / str(i)).rglob("*") if path.is_file())
             if (store.group / name / "c" / str(i)).is_dir() else store.group / name / "c" / str(i)
             for i in (0, 2)]  # fmt: skip
    content = [file.read_bytes() for file in files]
    for file, other in zip(files, content[::-1], strict=True):
        file.write_bytes(other)
    assert store.remove_damaged() == [0, 2]
    for number in (0, 2):
        store.write_chunk(number, Z[2 * number : 2 * number + 2])
    assert store.remove_damaged() == []
    np.testing.assert_array_equal(store.read(slice(0, 6)), Z)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.text(max_size=60), st.text(max_size=60))
def test_a_label_is_read_as_it_was_written(content, address, other):
    chunk = content + chunk_labels.google_crc32c.value(content).to_bytes(4, "little")
    labelled = chunk_labels.add_label(chunk, address)
    assert chunk_labels.google_crc32c.value(labelled[:-4]).to_bytes(4, "little") == labelled[-4:]
    assert chunk_labels.has_label(labelled, address)
    assert chunk_labels.has_label(labelled, other) == (address == other)


def test_ids_tell_runs_apart():
    facts = {"matching.matcher": "jv", "images.sha256": "0" * 64}
    assert chunk_labels.run_id(facts) == chunk_labels.run_id(dict(reversed(facts.items())))
    assert chunk_labels.run_id(facts) != chunk_labels.run_id(facts | {"images.sha256": "1" * 64})
    assert len(chunk_labels.run_id(facts)) == 16
