"""What a run tells while it works: a bar on a terminal, few plain lines elsewhere, and durations for people."""

import contextlib
import io
import logging
import math
import os
import pty
import re
import select
import termios
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist import progress
from semrsm_dist.errors import printable
from semrsm_dist.progress import ConsoleReporter, NoteHandler, SilentReporter, format_seconds


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def rows(self):
        """Return what the terminal shows in the end: a carriage return starts a row anew."""
        return [row.rsplit("\r", 1)[-1].rstrip() for row in self.getvalue().rstrip("\r").split("\n")]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_file_gets_one_line_every_ten_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 1000, "pairs") as stage:
        for _ in range(250):
            clock.now += 0.1
            stage.advance(2)
            stage.tick()
        assert stream.getvalue().splitlines() == [
            "matching: 200/1000 pairs (20 %), 20.0 pairs/s, 40 s left",
            "matching: 400/1000 pairs (40 %), 20.0 pairs/s, 30 s left",
        ]
        clock.now += 5
        stage.advance(500)
    assert stream.getvalue().splitlines()[-1] == "matching: 1000/1000 pairs (100 %), 33.3 pairs/s, took 30 s"


def test_a_stage_says_once_how_long_it_took_and_before_that_only_what_is_so(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 10, "pairs") as stage:
        clock.now += 10
        stage.advance(10)
        assert stream.getvalue() == ""  # the line that closes the stage says it better
        clock.now += 10
        stage.tick()
        clock.now += 5
        stage.tick()  # the next line is not due yet
    assert stream.getvalue().splitlines() == [
        "matching: 10/10 pairs (100 %), 0.5 pairs/s, finishing",
        "matching: 10/10 pairs (100 %), 0.4 pairs/s, took 25 s",
    ]


def test_silence_of_the_workers_is_reported_as_well(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 10, "pairs") as stage:
        clock.now += 10
        stage.tick()
    assert stream.getvalue().splitlines()[0] == "matching: 0/10 pairs (0 %), 0.0 pairs/s, unknown time left"


def test_a_stall_is_said_beside_the_time_left(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 1000, "pairs") as stage:
        clock.now += 90
        stage.advance(900)
        clock.now += 100
        stage.tick()
    line = "matching: 900/1000 pairs (90 %), 4.7 pairs/s, 21 s left, nothing new for 1 min 40 s"
    assert stream.getvalue().splitlines()[1] == line


def test_what_an_earlier_session_did_counts_as_done_but_not_for_the_rate(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 1000, "pairs", done=900) as stage:
        clock.now += 10
        stage.advance(50)
    assert stream.getvalue().splitlines() == [
        "matching: 950/1000 pairs (95 %), 5.0 pairs/s, 10 s left",
        "matching: 950/1000 pairs (95 %), 5.0 pairs/s, ended after 10 s",
    ]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_what_is_found_done_without_effort_is_said_only_where_nothing_is_left(clock, kind):
    stream = kind()
    reporter = ConsoleReporter(stream)
    with reporter.stage("scan", 32, "images") as stage:
        stage.advance(30, 0.0)  # another stage scans the other two
    shown = stream.rows()[-1] if stream.isatty() else stream.getvalue()
    assert shown == ""
    with reporter.stage("scan", 32, "images") as stage:
        stage.advance(20, 0.0)
        stage.advance(12, 0.0)
    assert "32/32 images" in stream.getvalue().splitlines()[-1]
    with reporter.stage("scan", 32, "images") as stage:
        clock.now += 20
        stage.advance(30, 0.0)
        stage.tick()
        assert "unknown time left" in stream.getvalue()  # how long the others take does not follow from these


def test_nothing_to_do_and_no_time_at_all_do_not_break_it(clock):
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("import", 0, "panels"):
        pass
    assert stream.getvalue() == ""


def test_an_interrupt_passes_through_and_the_last_line_is_reported(clock):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), ConsoleReporter(stream).stage("scan", 4, "images") as stage:
        clock.now += 1
        stage.advance(1)
        raise KeyboardInterrupt
    assert stream.getvalue() == "scan: 1/4 images (25 %), 1.0 images/s, ended after 1.0 s\n"


@pytest.mark.parametrize("make_stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("error", [ValueError("no panel"), None])
def test_a_stage_of_which_nothing_was_done_leaves_no_line(make_stream, error):
    stream = make_stream()
    with (
        pytest.raises(ValueError, match="no panel") if error else contextlib.nullcontext(),
        ConsoleReporter(stream).stage("import", 8, "panels"),
    ):
        if error:
            raise error  # otherwise, all of its units were set aside
    rows = stream.rows() if stream.isatty() else stream.getvalue().splitlines()
    assert rows in ([], [""])


def test_log_records_become_notes_with_their_level_each_once():
    stream = io.StringIO()
    log, handler = logging.getLogger("semrsm_dist.elsewhere"), NoteHandler(ConsoleReporter(stream))
    log.addHandler(handler)
    try:
        for name in ("a", "b\x1b[2J", "a"):
            log.warning("%s: passed over", name)
    finally:
        log.removeHandler(handler)
    assert stream.getvalue() == "warning: a: passed over\nwarning: b\\x1b[2J: passed over\n"


def test_notes_are_lines_of_their_own():
    stream = io.StringIO()
    ConsoleReporter(stream).note("warning: größe")
    assert stream.getvalue() == "warning: größe\n"


def test_standard_error_is_where_it_is_told(capsys):
    reporter = ConsoleReporter()
    reporter.note("note")
    with reporter.stage("scan", 1, "images") as stage:
        stage.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("note\nscan: 1/1 images")


def test_a_terminal_gets_a_bar_with_rate_and_time_left():
    stream = Terminal()
    with ConsoleReporter(stream).stage("matching", 100, "pairs", done=25) as stage:
        stage.advance(25)
        stage.tick()
        shown = stream.rows()[-1]
    assert "matching" in shown
    assert "50%" in shown
    assert "50/100 pairs" in shown
    assert re.search(r"\d+:\d+, .*pairs/s, .* left", shown)


def test_a_note_does_not_tear_the_bar_apart():
    stream = Terminal()
    reporter = ConsoleReporter(stream)
    with reporter.stage("matching", 100, "pairs") as stage:
        stage.advance(50)
        stage.tick()
        reporter.note("warning: something happened")
        stage.tick()
    rows = stream.rows()
    assert rows[0] == "warning: something happened"
    assert "matching" in rows[1]


def test_a_silent_reporter_prints_nothing(capfd):
    reporter = SilentReporter()
    reporter.note("nothing")
    with reporter.stage("scan", 3, "images", done=1) as stage:
        stage.advance(1)
        stage.tick()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (12.4, "12 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (5 * 3600 + 7 * 60 + 59, "5 h 07 min"),
        (100 * 3600, "100 h 00 min"),
        (math.nan, "unknown time"),
        (math.inf, "unknown time"),
    ],
)
def test_durations_for_people(seconds, text):
    assert format_seconds(seconds) == text


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_durations_keep_their_order_and_size(one, other):
    def value(text):
        units = {"h": 3600, "min": 60, "s": 1}
        return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+) (h|min|s)", text))

    short, long = sorted((one, other))
    assert value(format_seconds(short)) <= value(format_seconds(long))
    assert abs(value(format_seconds(one)) - one) <= (0.51 if one < 3600 else 60.5)


def test_time_left_is_told_from_effort_where_units_are_not_alike(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("semrsm_dist.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with ConsoleReporter(stream).stage("matching", 200, "pairs", effort=10.0) as stage:
        now[0] = 20.0
        stage.advance(20, effort=8.0)
        assert stream.getvalue().endswith("20/200 pairs (10 %), 1.0 pairs/s, 5.0 s left\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 160])
@pytest.mark.parametrize("total", [9, 1090, 32_000_000])
def test_a_bar_and_the_time_left_fit_the_terminal(clock, monkeypatch, columns, total):
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with os.fdopen(theirs, "w") as stream, ConsoleReporter(stream).stage("matching", total, "pairs") as stage:
        clock.now += 200
        stage.advance(total // 2)
        stage.tick()
        stream.flush()
        sent = b""
        while select.select([terminal], [], [], 0.1)[0]:
            sent += os.read(terminal, 65536)
        shown = sent.decode().rsplit("\r", 1)[-1]
    os.close(terminal)
    assert len(shown) <= columns
    assert re.search(r"\d+ (s|min \d\d s) left", shown), shown
    if columns >= 60:
        assert len(re.findall(r"\|(.*)\|", shown)[0]) >= 6
    if columns >= 100 and total < 10_000:
        assert re.search(rf"{total // 2}/{total} pairs .*pairs/s", shown)


class Gone(io.StringIO):
    """A stream whose reader has gone."""

    def __init__(self, error, is_terminal):
        super().__init__()
        self.error, self.is_terminal = error, is_terminal

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(5, "I/O"), OSError(28, "full"), ValueError("closed")],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_stream_that_fails_ends_nothing(clock, error, is_terminal):
    reporter = ConsoleReporter(Gone(error, is_terminal))
    reporter.note("note")
    with reporter.stage("matching", 10, "pairs") as stage:
        for _ in range(3):
            clock.now += 60
            stage.advance(3)
            stage.tick()


def test_without_standard_error_nothing_is_reported(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    reporter = ConsoleReporter()
    reporter.note("note")
    with reporter.stage("matching", 1, "pairs") as stage:
        stage.advance(1)


def test_names_cannot_command_a_terminal_and_an_ascii_stream_gets_escapes():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
    ConsoleReporter(stream).note("größe \x1b]0;mine\x07.png\u202e\x9b2J\tplain")
    stream.flush()
    assert stream.buffer.getvalue() == rb"gr\xf6\xdfe \x1b]0;mine\x07.png\u202e\x9b2J" + b"\tplain\n"


@given(st.text())
def test_printable_text_holds_no_control_character_and_keeps_all_else(text):
    shown = printable(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    if text.isprintable():
        assert shown == text
