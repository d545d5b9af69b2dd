"""Scratch arrays hold numbers outside memory, leave nothing behind, and say when there is no room."""

import os

import numpy as np
import pytest

from semrsm_dist.errors import StorageError
from semrsm_dist.store.scratch import scratch_arrays


def test_large_arrays_are_mapped_and_small_ones_are_not(tmp_path):
    with scratch_arrays(tmp_path / "new", in_memory=10) as allocate:
        small, large = allocate(10), allocate(11)
        assert not isinstance(small, np.memmap)
        assert isinstance(large, np.memmap)
        large[:] = np.arange(11)
        assert large.sum() == 55
    assert list((tmp_path / "new").iterdir()) == []


def test_arrays_are_apart(tmp_path):
    with scratch_arrays(tmp_path, in_memory=0) as allocate:
        one, two = allocate(3), allocate(3)
        one[:], two[:] = 1, 2
        assert one.tolist() == [1, 1, 1]


def test_no_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (
        scratch_arrays(tmp_path, in_memory=0) as allocate,
        pytest.raises(StorageError, match="No space left"),
    ):
        allocate(5)
    assert list(tmp_path.iterdir()) == []
