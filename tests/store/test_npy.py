"""Arrays written part by part: whole under their name, or not there."""

import resource
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import StorageError
from semrsm_dist.store.npy import write_npy


@given(
    st.lists(st.integers(0, 4), max_size=4), st.sampled_from(["<f8", ">f4", np.float32, np.int16]), st.data()
)
def test_what_is_written_is_read(tmp_path_factory, lengths, dtype, data):
    path = tmp_path_factory.mktemp("npy") / "z.npy"
    width = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    z = np.random.default_rng(0).integers(-99, 99, (sum(lengths), *width)).astype(dtype)
    write_npy(path, z.shape, dtype, iter(np.split(z, np.cumsum(lengths)[:-1]) if lengths else []))
    back = np.load(path)
    assert back.dtype == z.dtype
    np.testing.assert_array_equal(back, z)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("parts", [[np.zeros((2, 2))], [np.zeros((4, 2))], [np.zeros((3, 1))], []])
def test_parts_that_do_not_make_up_the_array_leave_nothing(tmp_path, parts):
    with pytest.raises(ValueError, match=r"rows|does not fit into"):
        write_npy(tmp_path / "z.npy", (3, 2), np.float64, parts)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_leaves_the_old_file_and_nothing_partial(tmp_path):
    path = tmp_path / "z.npy"
    write_npy(path, (2,), np.float64, [np.arange(2.0)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(StorageError, match=r"z\.npy: cannot be written"):
            write_npy(path, (1 << 16,), np.float64, (np.zeros(1 << 10) for _ in range(64)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    np.testing.assert_array_equal(np.load(path), np.arange(2.0))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_the_users_beside_it_stays(tmp_path):
    (tmp_path / "z.npy.partial").write_text("mine")
    write_npy(tmp_path / "z.npy", (2,), np.float64, [np.arange(2.0)])
    assert (tmp_path / "z.npy.partial").read_text() == "mine"
