"""Features in Zarr: every chunk is there, or the array is refused with the chunk's position."""

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from semrsm_dist.errors import InputError
from semrsm_dist.store.feature_source import open_array

SHAPE, CHUNKS = (20, 16, 8), (10, 16, 4)
Z = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
KINDS = ("v2", "v3", "sharded", "zip")


def write(folder, kind, z, *, fill=0.0, empty=False):
    """Write an array, leaving out the chunks that hold the fill value alone unless `empty`."""
    path = folder / ("z.zip" if kind == "zip" else "z.zarr")
    store = ZipStore(path, mode="w") if kind == "zip" else path
    options = {"zarr_format": 2} if kind == "v2" else {"shards": (20, 16, 8)} if kind == "sharded" else {}
    zarr.create_array(
        store,
        shape=z.shape,
        chunks=CHUNKS,
        dtype=z.dtype,
        fill_value=fill,
        config={"write_empty_chunks": empty},
        **options,
    )[...] = z
    if kind == "zip":
        store.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_an_array_is_read(tmp_path, kind):
    source = open_array(write(tmp_path, kind, Z))
    np.testing.assert_array_equal(source.read(3, 17), Z[3:17])
    np.save(tmp_path / "z.npy", Z)
    assert source.digest() == open_array(tmp_path / "z.npy").digest()


@pytest.mark.parametrize("fill", [0.0, 2.5, np.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_chunk_is_refused_and_named(tmp_path, kind, fill):
    z = Z.copy()
    z[10:, :, 4:] = fill
    source = open_array(write(tmp_path, kind, z, fill=fill))
    np.testing.assert_array_equal(source.read(2, 10), z[2:10])
    for start, stop in ((0, 20), (9, 11), (19, 20)):
        with pytest.raises(InputError, match=r"chunk \(1, 0, 1\) is missing; .*with write_empty_chunks=True"):
            source.read(start, stop)
    with pytest.raises(InputError, match=r"chunk \(1, 0, 1\) is missing"):
        source.digest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_of_zeros_that_was_written_is_taken(tmp_path, kind):
    """As the error about missing chunks advises."""
    z = Z.copy()
    z[10:, :, 4:] = 0
    np.testing.assert_array_equal(open_array(write(tmp_path, kind, z, empty=True)).read(0, 20), z)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_missing_chunks_of_integers_are_refused(tmp_path, dtype):
    z = np.full(SHAPE, 3, dtype)
    z[:10, :, :4] = 0
    with pytest.raises(InputError, match=r"chunk \(0, 0, 0\) is missing"):
        open_array(write(tmp_path, "v3", z, fill=0)).read(0, 1)


def test_a_zip_file_of_several_arrays_is_refused_with_a_way_out(tmp_path):
    store = ZipStore(tmp_path / "z.zip", mode="w")
    zarr.create_group(store).create_array("a", data=Z)
    store.close()
    with pytest.raises(InputError, match=r"z\.zip: a zip file of a Zarr group.*unpack it"):
        open_array(tmp_path / "z.zip")


def test_the_signature_of_a_zip_file_changes_with_it(tmp_path):
    path = write(tmp_path, "zip", Z)
    before = open_array(path).signature()
    assert open_array(path).signature() == before
    assert open_array(write(tmp_path, "zip", 2 * Z)).signature() != before
