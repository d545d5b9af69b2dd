"""Features come back bit by bit with the norms of what is stored; a chunk is complete or to be made again."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.errors import StorageError
from semrsm_dist.store import chunks
from semrsm_dist.store.features import (
    FEATURES,
    POOLED,
    SQUARED_NORM,
    TOKEN_COUNT,
    FeatureStore,
    round_features,
)

N, S, C, CHUNK = 7, 4, 3, 3
Z = np.random.default_rng(0).normal(size=(N, S, C)).astype(np.float32)


def store_in(path, dtype="float32", n_images=N, chunk_size=CHUNK):
    store = FeatureStore(path, "images", "blocks.0.größe")
    store.create(n_images, S, C, chunk_size, dtype, "id")
    return store


def fill(store, z=Z, chunk_size=CHUNK):
    for index, start in enumerate(range(0, len(z), chunk_size)):
        store.write_chunk(index, z[start : start + chunk_size])


@pytest.fixture
def store(tmp_path):
    store = store_in(tmp_path)
    fill(store)
    return store


@settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(["float32", "float16"]), st.sampled_from("fd"))
def test_any_cut_gives_the_same_features(tmp_path_factory, n_images, chunk, dtype, given_in):
    z = np.random.default_rng(n_images).normal(size=(n_images, S, C)).astype(given_in)
    store = store_in(tmp_path_factory.mktemp("store"), dtype, n_images, chunk)
    fill(store, z, chunk)
    stored = z.astype(dtype)
    wide = stored.astype(np.float64)
    assert store.is_complete()
    assert store.dtype() == dtype
    for start in range(n_images):
        for stop in range(start + 1, n_images + 1):
            found = store.read(slice(start, stop))
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, stored[start:stop])
    # Of the stored values: the norm of the values before rounding would make a cosine larger than 1.
    np.testing.assert_allclose(store.read_squared_norms(), (wide**2).sum(axis=(1, 2)), rtol=1e-14)
    np.testing.assert_allclose(store.read_pooled(), wide.mean(axis=1), rtol=1e-6, atol=1e-12)


@settings(max_examples=60)
@given(st.integers(-330, 308), st.sampled_from([("d", "f"), ("d", "e"), ("f", "e"), ("e", "f")]))
def test_a_type_holds_an_image_if_it_keeps_its_digits(exponent, types):
    given_in, kept_in = map(np.dtype, types)
    with np.errstate(over="ignore"):
        z = np.nan_to_num((Z * 10.0**exponent).astype(given_in))
    z[1, 1:] = 0  # one token, whose digits count
    z[2] = 0
    stored, fits = round_features(z, kept_in)
    assert stored.dtype == kept_in
    assert fits[2]
    for image, found, is_held in zip(z, stored, fits, strict=True):
        exact, size = image.astype(np.longdouble), np.abs(image).max()
        if is_held:
            lost = np.sqrt((((found - exact) / (size or 1)) ** 2).sum())
            assert lost <= np.finfo(kept_in).eps * np.sqrt(((exact / (size or 1)) ** 2).sum())
        else:
            usual = np.finfo(kept_in)
            assert size > usual.max or size < 1e3 * usual.tiny


def test_small_numbers_beside_large_ones_are_held():
    z = Z.copy()
    z[:, 1] *= 1e-9
    assert round_features(z, np.dtype(np.float16))[1].all()


def test_norms_do_not_depend_on_the_cut(tmp_path):
    stores = [store_in(tmp_path / str(size), chunk_size=size) for size in (1, 2, 7)]
    for store, size in zip(stores, (1, 2, 7), strict=True):
        fill(store, chunk_size=size)
    for store in stores[1:]:
        assert store.read_squared_norms().tobytes() == stores[0].read_squared_norms().tobytes()
        assert store.read_pooled().tobytes() == stores[0].read_pooled().tobytes()


@pytest.mark.parametrize("scale", [1e-30, 1e30, 0.0])
def test_extreme_values_keep_their_norms(tmp_path, scale):
    store = store_in(tmp_path)
    fill(store, (Z * np.float32(scale)).astype(np.float32))
    wide = (Z * np.float32(scale)).astype(np.float64)
    np.testing.assert_allclose(store.read_squared_norms(), (wide**2).sum(axis=(1, 2)), rtol=1e-14)
    assert store.is_complete()


def test_a_chunk_is_complete_when_all_of_it_is_there(tmp_path):
    store = store_in(tmp_path)
    assert store.present() == set()
    assert not store.is_complete()
    store.write_chunk(1, Z[3:6])
    assert store.present() == {1}
    assert [store.has_chunk(index) for index in range(3)] == [False, True, False]
    assert not store.is_complete()
    np.testing.assert_array_equal(store.read(slice(3, 6)), Z[3:6])


@pytest.mark.parametrize("images", [slice(0, 1), slice(2, 4), slice(5, 7), slice(0, 7)])
def test_missing_features_are_never_read_as_numbers(tmp_path, images):
    store = store_in(tmp_path)
    store.write_chunk(1, Z[3:6])
    first = 0 if images.start < CHUNK else 2
    for reading, file in (
        (lambda: store.read(images), f"features/c/{first}/0/0"),
        (lambda: store.read_token_counts(images), f"token_count/c/{first}"),
        (store.read_squared_norms, "squared_norm/c/0"),
        (store.read_pooled, "pooled/c/0/0"),
    ):
        with pytest.raises(StorageError, match=f"{file}: this chunk is missing; .*start the run's command"):
            reading()


@pytest.mark.parametrize("name", [FEATURES, SQUARED_NORM, POOLED, TOKEN_COUNT])
def test_a_damaged_chunk_is_named_removed_and_computed_again(store, name):
    file = store.group / name / ("c/1" + {FEATURES: "/0/0", POOLED: "/0"}.get(name, ""))
    file.write_bytes(file.read_bytes()[:-3])
    reading = {
        FEATURES: lambda: store.read(slice(0, N)),
        SQUARED_NORM: store.read_squared_norms,
        POOLED: store.read_pooled,
        TOKEN_COUNT: store.read_token_counts,
    }[name]
    with pytest.raises(StorageError, match=r"this chunk holds damaged bytes .* start the run's command"):
        reading()
    assert store.remove_damaged() == [1]
    assert store.present() == {0, 2}
    assert not store.has_chunk(1)
    assert not store.is_complete()
    store.write_chunk(1, Z[3:6])
    assert store.is_complete()
    reading()
    np.testing.assert_array_equal(store.read(slice(0, N)), Z)


def test_features_are_written_last(tmp_path, monkeypatch):
    """So that a kill between two of the four chunks leaves a chunk that is not there."""
    written = []
    real = chunks.write_chunk
    monkeypatch.setattr(
        chunks, "write_chunk", lambda a, *rest: written.append(a.store_path) or real(a, *rest)
    )
    store_in(tmp_path).write_chunk(0, Z[:3])
    assert [str(path).rsplit("/", 1)[-1] for path in written] == [
        TOKEN_COUNT,
        SQUARED_NORM,
        POOLED,
        FEATURES,
    ]


@pytest.mark.parametrize("z", [Z[:2], Z[:4], Z[:3, :2], Z[:3, :, :2], Z[0]], ids=lambda z: str(z.shape))
def test_another_shape_is_refused_before_anything_counts_as_there(tmp_path, z):
    store = store_in(tmp_path)
    with pytest.raises(ValueError, match="takes features"):
        store.write_chunk(0, z)
    assert store.present() == set()


def test_another_layer_of_the_same_name_is_not_overwritten(store, tmp_path):
    for change in ({"dtype": "float16"}, {"chunk_size": 2}):
        with pytest.raises(StorageError, match="nothing was overwritten"):
            store_in(tmp_path, **change)
    np.testing.assert_array_equal(store.read(slice(0, N)), Z)
    store_in(tmp_path)
    assert store.is_complete()


def test_a_layer_that_is_gone_is_reported(store):
    shutil.rmtree(store.group)
    later = FeatureStore(store.root, store.side, store.layer)
    for reading in (
        later.read_squared_norms,
        later.read_pooled,
        later.read_token_counts,
        lambda: later.read(slice(0, 1)),
    ):
        with pytest.raises(StorageError, match="no such array"):
            reading()
    with pytest.raises(StorageError, match="this chunk is missing"):  # it was open
        store.read(slice(0, 1))
    assert store.present() == set()
    assert not later.is_complete()


@pytest.mark.parametrize("name", [FEATURES, POOLED, SQUARED_NORM, TOKEN_COUNT])
def test_a_chunk_of_which_anything_is_damaged_is_removed_and_no_other(store, name):
    file = store.group / name / ("c/1" + {FEATURES: "/0/0", POOLED: "/0"}.get(name, ""))
    file.write_bytes(file.read_bytes()[:-3])
    assert store.remove_damaged() == [1]
    assert store.present() == {0, 2}
    store.write_chunk(1, Z[CHUNK : 2 * CHUNK])
    assert store.remove_damaged() == []
    np.testing.assert_array_equal(store.read(slice(0, N)), Z)


@settings(max_examples=12)
@given(st.lists(st.integers(1, S), min_size=N, max_size=N), st.floats(allow_nan=True, width=32))
def test_images_of_fewer_tokens_keep_theirs_alone(tmp_path_factory, counts, rest):
    """Whatever the source holds beyond an image's tokens, nothing of it is stored."""
    store, counts = store_in(tmp_path_factory.mktemp("store")), np.array(counts)
    beyond = (np.arange(S) >= counts[:, None])[:, :, None]
    for index, start in enumerate(range(0, N, CHUNK)):
        part = slice(start, min(start + CHUNK, N))
        store.write_chunk(index, np.where(beyond, np.float32(rest), Z)[part], counts[part])
    expected = np.where(beyond, 0, Z).astype(np.float64)
    np.testing.assert_array_equal(store.read(slice(0, N)), expected)
    np.testing.assert_array_equal(store.read_token_counts(), counts)
    np.testing.assert_array_equal(store.read_token_counts(slice(2, 5)), counts[2:5])
    np.testing.assert_allclose(store.read_squared_norms(), (expected**2).sum(axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(
        store.read_pooled(), expected.sum(axis=1) / counts[:, None], rtol=1e-5, atol=1e-7
    )


def test_a_folder_in_the_place_of_a_chunk_is_moved_aside(store, caplog):
    file = store.group / FEATURES / "c" / "1" / "0" / "0"
    file.unlink()
    file.mkdir()
    assert store.present() == {0, 2}
    file.joinpath("kept").write_text("of somebody")
    store.write_chunk(1, Z[3:6])
    np.testing.assert_array_equal(store.read(slice(0, N)), Z)
    assert file.with_name("0.aside-1").joinpath("kept").read_text() == "of somebody"
    assert f"{file}: there was a folder in its place, which is 0.aside-1 now" in caplog.text


def test_a_file_in_the_place_of_the_folder_of_a_chunk_is_moved_aside(store):
    folder = store.group / FEATURES / "c" / "1"
    shutil.rmtree(folder)
    folder.write_text("of somebody")
    store.write_chunk(1, Z[3:6])
    np.testing.assert_array_equal(store.read(slice(0, N)), Z)
    assert folder.with_name("1.aside-1").read_text() == "of somebody"


def test_looking_for_features_makes_nothing(tmp_path):
    store = FeatureStore(tmp_path / "features.zarr", "images", "a")
    assert not store.is_verified()
    assert list(tmp_path.iterdir()) == []
