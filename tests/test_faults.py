"""What a failed unit tells the driver: the gist for people, the traceback of a defect, and what no retry mends."""

import errno
import os
import pickle
import socket

import pytest

from semrsm_dist.engine.schedule import Failure
from semrsm_dist.errors import InputError, StorageError, WorkError
from semrsm_dist.pipeline.faults import failure_receipt, first_cause, list_failures
from semrsm_dist.plan.tiling import Tile
from semrsm_dist.store.directory import FATAL_ERRNOS, RunDirectory

UNIT = Tile("layer1", 2, 3)


def receipt_of(error):
    try:
        raise error
    except type(error) as caught:
        return failure_receipt(UNIT, caught)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM]
)
def test_what_fails_every_other_unit_too_is_fatal(number):
    receipt = receipt_of(OSError(number, os.strerror(number), "/run/tiles.zarr/c/0/2/3"))
    assert number in FATAL_ERRNOS
    assert receipt.fatal
    assert receipt.unit == UNIT
    assert os.strerror(number) in receipt.error
    assert "make room" in receipt.error
    assert "/run/tiles.zarr/c/0/2/3" in receipt.error


def test_a_node_that_does_not_see_the_run_stops_it_and_says_what_to_share(tmp_path):
    error = StorageError("no such array; start the same command")
    unseen = failure_receipt(UNIT, error, tmp_path / "run")
    assert unseen.fatal
    for words in (socket.gethostname(), str(tmp_path / "run"), "that all nodes share"):
        assert words in unseen.error
    assert "the same command" not in unseen.error
    run = RunDirectory(tmp_path / "run")
    run.create()
    with run.locked():
        seen = failure_receipt(UNIT, error, run.path)
    assert not seen.fatal
    assert "no such array" in seen.error


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOENT])
def test_what_may_pass_is_tried_again(number):
    assert not receipt_of(OSError(number, os.strerror(number))).fatal


def test_errors_for_users_are_reported_as_they_are():
    for error in (InputError("image 'a' holds NaN"), WorkError("two\nlines")):
        receipt = receipt_of(error)
        assert (receipt.error, receipt.fatal) == (str(error), False)
    assert "the stored bytes are damaged" in receipt_of(StorageError("the stored bytes are damaged")).error


def test_a_defect_keeps_its_traceback_and_its_last_line_is_the_gist():
    try:
        try:
            {}["inner"]
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        receipt = failure_receipt(UNIT, error)
    assert receipt.error.startswith("Traceback")
    assert "KeyError: 'inner'" in receipt.error
    assert "test_faults.py" in receipt.error
    assert first_cause([Failure(UNIT, receipt.error, 3)]) == "ValueError: outer"


def test_receipts_travel_between_processes():
    receipt = receipt_of(OSError(errno.ENOSPC, "full"))
    assert pickle.loads(pickle.dumps(receipt)) == receipt


def test_failures_are_listed_one_a_line_and_not_without_end():
    failures = [Failure(Tile("layer1", index, index), f"cause {index}\n", 3) for index in range(13)]
    lines = list_failures(failures).split("\n")
    assert lines[0] == "  layer1/0.0: cause 0"
    assert lines[9:] == ["  layer1/9.9: cause 9", "  and 3 more"]
    assert list_failures(failures[:10]).count("\n") == 9
    assert list_failures([]) == ""
    assert first_cause(failures) == "cause 0"
