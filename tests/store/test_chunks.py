"""A chunk is whole, as it was written, or an error: never NaN, never a part, never a traceback."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import StorageError
from semrsm_dist.store import arrays, chunk_labels, chunks, groups, paths

SHAPE, CHUNKS, GRID = (5, 7), (2, 3), (3, 3)
rng = np.random.default_rng(0)
VALUES = rng.normal(size=SHAPE)


def make(group, name="a", shape=SHAPE, sizes=CHUNKS, dtype="float64", run="id"):
    dimensions = dict(zip("xy", zip(shape, sizes, strict=True), strict=True))
    return arrays.create_array(
        group, name, dimensions=dimensions, dtype=dtype, origin=chunk_labels.origin(run, group.name, name)
    )


@pytest.fixture
def group(tmp_path):
    return tmp_path / "größe 1 %20.zarr"


@pytest.fixture
def array(group):
    array = make(group)
    for index in np.ndindex(GRID):
        chunks.write_chunk(array, index, VALUES[chunks.chunk_region(array, index)])
    return array


def file_of(group, *index, name="a"):
    return group.joinpath(name, "c", *map(str, index))


def test_what_is_written_is_read(group, array):
    np.testing.assert_array_equal(array[:], VALUES)
    again = arrays.open_array(group, "a")
    for index in np.ndindex(GRID):
        region = chunks.chunk_region(again, index)
        np.testing.assert_array_equal(chunks.read_chunk(again, index), VALUES[region])
    np.testing.assert_array_equal(chunks.read_region(again, (slice(1, 4), slice(2, 7))), VALUES[1:4, 2:7])
    assert chunks.list_chunks(group, "a") == set(np.ndindex(GRID))


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_chunks_cover_an_array_exactly_once(shape, sizes):
    array = zarr.create_array({}, shape=shape, chunks=sizes, dtype="int64")
    grid = [-(-length // size) for length, size in zip(shape, sizes, strict=True)]
    for index in np.ndindex(*grid):
        region = chunks.chunk_region(array, index)
        array[region] = np.asarray(array[region]) + 1
    assert (array[:] == 1).all()
    for outside in ((-1, 0), (0, -1), (grid[0], 0), (0, grid[1]), (0,), (0, 0, 0)):
        with pytest.raises(ValueError, match="but no chunk"):
            chunks.chunk_region(array, outside)


@pytest.mark.parametrize(
    "values",
    [np.nan, 0.0, -0.0, 1e300, 5e-324],
)
def test_a_chunk_of_fill_values_or_zeros_is_there(group, values):
    array = make(group)
    chunks.write_chunk(array, (0, 0), np.full(CHUNKS, values))
    assert chunks.list_chunks(group, "a") == {(0, 0)}
    found = chunks.read_chunk(arrays.open_array(group, "a"), (0, 0))
    assert found.tobytes() == np.full(CHUNKS, values).tobytes()


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 2)),
        np.zeros((1, 3)),
        np.zeros((3, 2)),
        np.zeros((1, 2, 3)),
        np.zeros(()),
        np.zeros((2, 3), dtype=np.float32),
        np.zeros((2, 3), dtype=np.int64),
        np.zeros((2, 3), dtype=">f8"),
        np.zeros((2, 3), dtype=complex),
    ],
    ids=lambda values: f"{values.dtype}{values.shape}",
)
def test_what_zarr_would_cast_or_broadcast_is_refused(group, array, values):
    before = file_of(group, 1, 1).read_bytes()
    with pytest.raises(ValueError, match=r"chunk \(1, 1\) of .*/a takes float64 of shape \(2, 3\), not"):
        chunks.write_chunk(array, (1, 1), values)
    assert file_of(group, 1, 1).read_bytes() == before


def test_a_chunk_at_the_edge_has_the_edge_s_shape(array):
    chunks.write_chunk(array, (2, 2), np.ones((1, 1)))
    assert chunks.read_chunk(array, (2, 2)).shape == (1, 1)
    with pytest.raises(ValueError, match=r"shape \(1, 1\), not float64 of shape \(2, 3\)"):
        chunks.write_chunk(array, (2, 2), np.ones(CHUNKS))


def test_the_order_in_memory_does_not_matter(array):
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    chunks.write_chunk(array, (0, 0), values)
    np.testing.assert_array_equal(chunks.read_chunk(array, (0, 0)), values)


# --- damage ----------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_noticed(group, array):
    file = file_of(group, 1, 1)
    intact = file.read_bytes()
    for position in range(len(intact)):
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            assert "damaged" in (chunks.find_fault(array, (1, 1)) or ""), (position, bit)
    file.write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
    assert chunks.find_fault(array, (1, 1)) == "holds damaged bytes (its checksum is wrong)"
    file.write_bytes(intact)
    assert chunks.find_fault(array, (1, 1)) is None


def test_every_truncation_is_noticed(group, array):
    file = file_of(group, 1, 1)
    intact = file.read_bytes()
    for content in [intact[:length] for length in range(len(intact))] + [intact + b"\0", b"\0" * len(intact)]:
        file.write_bytes(content)
        assert "damaged" in chunks.find_fault(array, (1, 1))
        with pytest.raises(chunks.DamagedChunkError, match=r"/a/c/1/1: this chunk holds damaged bytes"):
            chunks.read_chunk(array, (1, 1))
        with pytest.raises(StorageError, match="damaged"):
            chunks.read_region(array, (slice(0, 5), slice(0, 7)))


def test_damage_elsewhere_spoils_nothing(group, array):
    file_of(group, 1, 1).write_bytes(b"")
    np.testing.assert_array_equal(chunks.read_chunk(array, (0, 0)), VALUES[:2, :3])
    np.testing.assert_array_equal(chunks.read_region(array, (slice(0, 2), slice(0, 7))), VALUES[:2])


def test_a_deleted_chunk_is_missing_and_can_be_written_again(group, array):
    chunks.delete_chunk(group, "a", (1, 1))
    chunks.delete_chunk(group, "a", (1, 1))  # another process was faster
    assert chunks.list_chunks(group, "a") == set(np.ndindex(GRID)) - {(1, 1)}
    with pytest.raises(StorageError, match=r"/a/c/1/1: this chunk is missing; .* start the run's command"):
        chunks.read_chunk(array, (1, 1))
    chunks.write_chunk(array, (1, 1), VALUES[2:4, 3:6])
    np.testing.assert_array_equal(array[:], VALUES)


def test_only_whole_chunks_are_listed(group, array):
    chunks.delete_chunk(group, "a", (1, 1))
    folder = file_of(group, 1)
    for name in ("1.0b3c.partial", "1.partial", ".1.swp", "x", "²", "-1", "1 "):
        folder.joinpath(name).write_bytes(b"half a chunk")
    folder.joinpath("1").mkdir()
    file_of(group, 2, 2).unlink()
    file_of(group, 2, 2).symlink_to(group / "nothing")
    assert chunks.list_chunks(group, "a") == set(np.ndindex(GRID)) - {(1, 1), (2, 2)}
    assert chunks.list_chunks(group, "no array of this name") == set()
    assert chunks.list_chunks(group / "no group", "a") == set()


def test_a_writer_that_is_killed_leaves_whole_chunks_only(tmp_path):
    script = (
        "import sys, numpy as np; from pathlib import Path; from semrsm_dist.store import arrays, chunks\n"
        "array = arrays.open_array(Path(sys.argv[1]), 'a')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for row in range(4): chunks.write_chunk(array, (row, 0), np.random.rand(512, 512))\n"
    )
    array = make(tmp_path, shape=(2048, 512), sizes=(512, 512))
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "ready\n"
        while not chunks.list_chunks(tmp_path, "a"):
            time.sleep(0.01)
        time.sleep(0.1)
        writer.send_signal(signal.SIGKILL)
    present = chunks.list_chunks(tmp_path, "a")
    assert present
    for index in present:
        assert np.isfinite(chunks.read_chunk(array, index)).all()


# --- descriptions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "found"),
    [({"run": "other"}, "id/größe"), ({"sizes": (2, 4)}, "(2, 3)"), ({"dtype": "float32"}, "'float64'")],
)
def test_another_array_is_not_overwritten(group, array, change, found):
    with pytest.raises(StorageError) as caught:
        make(group, **change)
    assert found in str(caught.value)
    assert "nothing was overwritten: start a new run directory" in str(caught.value)
    np.testing.assert_array_equal(arrays.open_array(group, "a")[:], VALUES)


def test_the_same_array_is_opened_again(group, array):
    np.testing.assert_array_equal(make(group)[:], VALUES)


@pytest.mark.parametrize(
    "damage",
    [
        "cut",
        "empty",
        "zeros",
        "list",
        "object",
        "field",
        "codec",
        "group",
        "shape",
        "chunks",
        "type",
        "name",
        "origin",
    ],
)
def test_a_damaged_description_is_named_and_written_anew(group, array, damage, caplog):
    file = group / "a" / "zarr.json"
    text = file.read_text()
    content = {
        "cut": text[:60],
        "shape": text.replace("5,", "7,"),
        "chunks": text.replace("3\n", "1\n"),
        "type": text.replace("float64", "float32"),
        "name": text.replace('"x"', '"z"'),
        "origin": text.replace("id/", "ie/"),
        "empty": "",
        "zeros": "\0" * len(text),
        "list": "[]",
        "object": "{}",
        "field": text.replace('"shape"', '"shap"'),
        "codec": text.replace('"zstd"', '"zstx"'),
        "group": json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}),
    }[damage]
    assert content != text
    file.write_text(content)
    if damage in ("cut", "empty", "zeros", "list", "object", "field", "codec", "group"):
        with pytest.raises(StorageError) as caught:
            arrays.open_array(group, "a")
        assert str(caught.value).startswith(f"{file}: not the description of what should be here (")
        assert "start the run's command (semrsm run ...), which writes it anew and keeps the chunks" in str(
            caught.value
        )
    np.testing.assert_array_equal(make(group)[:], VALUES)
    assert f"{file}: " in caplog.text
    assert "it is written anew" in caplog.text
    assert file.read_text() == text


def test_a_damaged_description_of_a_group_is_written_anew(group, array, caplog):
    file = group / "zarr.json"
    groups.create_group(group.parent, group.name).attrs["known"] = 3
    content = file.read_text()
    for damaged in (content[:20], "", "\0" * len(content), content.replace("group", "grouq"), "[]", None):
        file.unlink()
        file.mkdir() if damaged is None else file.write_text(damaged)
        groups.create_group(group.parent, f"{group.name}/below")
        assert groups.read_attributes(group) == {}
        assert zarr.open_group(group, mode="r", use_consolidated=False)["below"].attrs.asdict() == {}
        assert f"{file}: " in caplog.text
        caplog.clear()


def test_what_is_not_there_is_said_to_be_missing(group, array):
    for place, name in ((group, "b"), (group / "no", "a"), (group / "a" / "zarr.json", "a")):
        with pytest.raises(StorageError, match="no such array; the run is incomplete or damaged"):
            arrays.open_array(place, name)


@pytest.mark.parametrize(
    ("make_there", "what"), [(Path.mkdir, "a folder"), (os.mkfifo, "a pipe, not a file")]
)
def test_what_is_in_the_place_of_a_description_is_named(group, array, make_there, what):
    file = group / "a" / "zarr.json"
    file.unlink()
    make_there(file)
    with pytest.raises(
        StorageError, match=rf"/a: no such array \(zarr\.json: it is {what}\); .*the run's command"
    ):
        arrays.open_array(group, "a")


# --- the file system -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_file_in_the_place_of_a_folder_is_moved_aside(group, array, kind, caplog):
    place = group / "place"
    for number, make_there in enumerate(
        (lambda: make(group, "place"), lambda: groups.create_group(group, "place/below"))
    ):
        shutil.rmtree(place, ignore_errors=True)
        place.write_text("x") if kind == "file" else place.symlink_to("nowhere")
        make_there()
        aside = group / f"place.aside-{number + 1}"
        assert aside.is_symlink() if kind != "file" else aside.read_text() == "x"
        assert f"{place}: there was a " in caplog.text
        caplog.clear()


class Failing:
    """Makes opening files for reading or writing fail, as a broken or full disk would."""

    def __init__(self, monkeypatch, number, modes, name="/c/"):
        opened = os.open
        real = open

        def fail(path):
            raise OSError(number, os.strerror(number), str(path))

        def checked_open(path, mode="r", *args, **kwargs):
            if set(mode) & set(modes) and name in str(path):
                fail(path)
            return real(path, mode, *args, **kwargs)

        def checked_os_open(path, flags, *args, **kwargs):
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
            if ("w" in modes if writes else "r" in modes) and name in str(path):
                fail(path)
            return opened(path, flags, *args, **kwargs)

        monkeypatch.setattr("builtins.open", checked_open)
        monkeypatch.setattr("io.open", checked_open)
        monkeypatch.setattr(os, "open", checked_os_open)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_raises_what_the_scheduler_knows_as_fatal(group, array, monkeypatch, number):
    Failing(monkeypatch, number, "wax")
    with pytest.raises(OSError, match=r".") as caught:
        chunks.write_chunk(array, (0, 0), np.ones(CHUNKS))
    assert caught.value.errno == number
    monkeypatch.undo()
    np.testing.assert_array_equal(array[:], VALUES)


def test_a_full_disk_while_an_array_is_made_is_reported(group, array, monkeypatch):
    Failing(monkeypatch, errno.ENOSPC, "wax", name="/b")
    with pytest.raises(
        StorageError, match=r"/b/zarr\.json: cannot be written \(No space left on device\); .* make room"
    ):
        make(group, "b")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_disk_that_cannot_be_read_does_not_make_a_chunk_damaged(group, array, monkeypatch, number):
    """Otherwise one bad moment of a network disk would delete finished work."""
    Failing(monkeypatch, number, "r")
    with pytest.raises(StorageError, match=r"/a/c/1/1: cannot be read") as caught:
        chunks.find_fault(array, (1, 1))
    assert not isinstance(caught.value, chunks.DamagedChunkError)


def test_errors_of_the_file_system_name_the_path(tmp_path):
    with (
        pytest.raises(StorageError, match=f"{tmp_path}: cannot be written .No space"),
        paths.writing(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="as it was"), paths.writing(tmp_path):
        raise StorageError("as it was")
    with pytest.raises(ZeroDivisionError), paths.writing(tmp_path):
        raise ZeroDivisionError


WITHOUT_THREADS = """
import resource, sys
from pathlib import Path
from semrsm_dist.errors import UnreadableFileError
from semrsm_dist.store import arrays, chunks

array = arrays.open_array(Path(sys.argv[1]), "a")
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (2**20, limits[1]))  # less than what is in use: no thread can start
try:
    found = chunks.read_region(array, (slice(0, 5), slice(0, 7)))  # several chunks: more threads than there are
except UnreadableFileError as error:
    found = str(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(found)
"""


@pytest.mark.slow
def test_chunks_that_lack_threads_to_be_decoded_are_not_damaged(group, array):
    command = [sys.executable, "-c", WITHOUT_THREADS, group]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert "cannot be decoded (can't start new thread), although its bytes are intact" in done.stdout
    assert f"{group}/a/c/" in done.stdout
