"""Settings in which torch gives the same numbers every time, and that they are left as they were."""

import threading

import pytest
import torch

from semrsm_dist.features.reproducible import reproducible

BACKENDS = torch.backends
NEW = hasattr(BACKENDS.cudnn, "conv")
only_new = pytest.mark.skipif(not NEW, reason="this torch has only the old switches")


def switches():
    """Return all of torch's switches of precision; None for those that it refuses to read."""
    found = []
    for read in (
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    parts = (BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.cuda.matmul) if NEW else ()
    return [*found, *(part.fp32_precision for part in parts)]


def use_new_switches():
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    BACKENDS.cuda.matmul.fp32_precision = "tf32"


CHOICES = [
    lambda: None,
    lambda: torch.set_float32_matmul_precision("medium"),
    pytest.param(use_new_switches, marks=only_new),
]


@pytest.fixture(autouse=True)
def torch_as_it_was():
    before = switches()
    yield
    torch.set_float32_matmul_precision(before[2])
    BACKENDS.cudnn.allow_tf32 = before[0]
    if NEW:
        BACKENDS.cudnn.conv.fp32_precision, BACKENDS.cudnn.rnn.fp32_precision = before[3:5]
        BACKENDS.cuda.matmul.fp32_precision = before[5]
    assert switches() == before


@pytest.mark.parametrize("choose", CHOICES)
def test_products_are_in_full_precision_whatever_the_user_has_chosen_and_the_choice_is_kept(choose):
    choose()
    chosen = switches()
    with reproducible():
        assert switches() == [False, False, "highest", *["ieee"] * 3 * NEW]
    assert switches() == chosen


def test_the_last_thread_to_leave_restores_the_settings():
    before, entered, leave = switches(), threading.Event(), threading.Event()

    def work():
        with reproducible():
            entered.set()
            leave.wait(10)

    with reproducible():
        other = threading.Thread(target=work)
        other.start()
        assert entered.wait(10)
    within = switches(), BACKENDS.cudnn.deterministic
    leave.set()
    other.join()
    assert within == ([False, False, "highest", *["ieee"] * 3 * NEW], True)
    assert switches() == before
