"""An interrupt is not lost, whatever it came out as."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from semrsm_dist.cli.interrupts import SIGNALS, end_while_loading, stopping_in_order
from semrsm_dist.errors import StorageError, WorkError
from semrsm_dist.pipeline.signals import find_cause


@pytest.fixture(autouse=True)
def _handlers_as_before():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_is_raised_and_remembered(number):
    with pytest.raises(KeyboardInterrupt, match=number.name), stopping_in_order() as stop:
        os.kill(os.getpid(), number)
    assert stop.is_set()


def test_one_without_a_signal_is_reported_as_what_it_is():
    said = r"no signal came.*test_interrupts\.py:\d+.*start the same command"
    with pytest.raises(WorkError, match=said), stopping_in_order():
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_forgets_is_remembered():
    class Interrupted:
        def __del__(self):  # what is raised here is printed, and nothing else
            os.kill(os.getpid(), signal.SIGINT)

    with stopping_in_order() as stop:
        assert not stop.is_set()
        Interrupted()
        assert stop.is_set()


def test_another_error_made_of_one_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt) as caught, stopping_in_order():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ValueError("a library's own") from error
    assert isinstance(caught.value.__cause__, ValueError)


def test_before_the_block_ends_it_is_known_what_an_error_really_is():
    library, ours = ValueError("a library's own"), StorageError("the disk is full")
    assert find_cause(KeyboardInterrupt()).args == ()  # nobody watches
    with stopping_in_order():
        assert find_cause(library) is library
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(find_cause(library), KeyboardInterrupt)
        assert find_cause(library).args == ("SIGTERM",)
        assert find_cause(ours) is ours


def test_what_the_user_has_to_know_is_reported_even_so():
    with pytest.raises(StorageError), stopping_in_order() as stop:
        stop.set()
        raise StorageError("the disk is full")


@pytest.mark.parametrize("error", [ValueError, StorageError])
def test_errors_without_an_interrupt_pass(error):
    with pytest.raises(error), stopping_in_order():
        raise error("wrong")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stopping_in_order():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_is_ignored_on_purpose_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_while_loading()
    with stopping_in_order() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_one_that_comes_at_the_very_end_does_not_change_the_status():
    code = (
        "import os, signal, sys, atexit\n"
        "from semrsm_dist.cli.interrupts import *\n"
        "atexit.register(lambda: [os.kill(os.getpid(), number) for number in SIGNALS])\n"
        "ignore_from_now_on()\n"
        "sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
