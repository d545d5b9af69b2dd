"""Reading images beside a model: in threads or, where a GPU would wait for Python's lock, in processes.

Run as a module, this is such a process: it reads an `ImageReader` and then requests from its standard input, and writes
the images, or the exception, to its standard output. It ends with its input, and so with the worker that started it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from numpy.typing import NDArray

from semrsm_dist.data.manifest import ManifestRow
from semrsm_dist.data.source import ImageSource, load_image
from semrsm_dist.errors import InputError, WorkError
from semrsm_dist.store.record import Side

if TYPE_CHECKING:
    from semrsm_dist.features.preprocessing import Prepared, Preprocessing

GROUP = 4
"""Images that a reader reads for one request: few, so that all readers share a batch."""


@dataclass(frozen=True)
class ImageReader:
    """Reads images of a run, and brings them to the network's size."""

    sources: Mapping[Side, ImageSource]
    """Where the images of each side are read."""
    preprocessing: Preprocessing
    """What is done to them."""
    jpeg_draft: bool = False
    """Whether large JPEGs are decoded at a part of their size."""

    def __call__(self, side: Side, rows: Sequence[ManifestRow]) -> list[Prepared]:
        """Return some images.

        Raises
        ------
        InputError
            If one is no longer what it was, or cannot be read.
        StorageError
            If the storage fails.
        """
        return [self._read(self.sources[side], row) for row in rows]

    def _read(self, source: ImageSource, row: ManifestRow) -> Prepared:
        least = self.preprocessing.least_size if self.jpeg_draft else None
        loaded = load_image(source, row.entry, least)
        if loaded.sha256 != row.sha256:
            raise InputError(
                f"image {row.image_id!r} is no longer the one that this run began with (hash {loaded.sha256[:12]}, "
                f"not {str(row.sha256)[:12]}); its features were not taken, as the matrix would show them under the "
                "old content: put the old content back and start the run's command, or begin a new run directory"
            )
        return self.preprocessing.prepare(loaded.image, row.image_id)


class ReaderPool:
    """Readers that work ahead of a model, for as long as the pool is referred to.

    Parameters
    ----------
    reader
        Reads images.
    count
        Images that are read at once, which is also how many of full size there are in memory.
    in_processes
        Whether each reader is a process of its own. That takes some seconds to start, but decoding then has as many
        cores as there are readers.
    """

    def __init__(self, reader: ImageReader, count: int, *, in_processes: bool = False) -> None:
        self.count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="semrsm-reader")
        processes = _Processes(reader) if in_processes else None
        self._read: Callable[[Side, Sequence[ManifestRow]], list[Prepared]] = processes or reader
        weakref.finalize(self, _end, self._threads, processes)

    def start(self, side: Side, rows: Sequence[ManifestRow]) -> list[Future[list[Prepared]]]:
        """Begin to read images; each future has some of them, in order."""
        groups = (rows[start : start + GROUP] for start in range(0, len(rows), GROUP))
        return [self._threads.submit(self._read, side, group) for group in groups]


def _end(threads: ThreadPoolExecutor, processes: _Processes | None) -> None:
    threads.shutdown(wait=False, cancel_futures=True)
    if processes is not None:
        processes.end()


class _Processes:
    """A process for each thread that calls this."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = pickle.dumps(reader)
        self._own = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def __call__(self, side: Side, rows: Sequence[ManifestRow]) -> list[Prepared]:
        from semrsm_dist.features.preprocessing import from_arrays  # noqa: PLC0415 - torch only where a model runs

        process, first = getattr(self._own, "process", None), b""
        if process is None:
            process, first = self._start(), self._reader
        requests, answers = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
        try:
            requests.write(first + pickle.dumps((side, tuple(rows))))
            requests.flush()
            found = pickle.load(answers)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self._own.process = None
            process.kill()
            raise WorkError(
                f"a process that reads images ended (status {process.wait()}), perhaps for lack of memory; its images "
                "are read again by another. If that repeats, give the machine more memory"
            ) from error
        if isinstance(found, Exception):
            raise found
        return from_arrays(found)

    def _start(self) -> subprocess.Popen[bytes]:
        variables = {
            "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self._own.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **variables},
        )
        self._all.append(self._own.process)
        return self._all[-1]

    def end(self) -> None:
        """End all processes; they have nothing that could be lost."""
        for process in self._all:
            process.kill()
            process.wait()


def _serve() -> None:
    """Answer requests until there are no more."""
    # A user's interrupt is for the worker, which then closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get among the answers
    read = _attempt(partial(pickle.load, requests))
    while True:
        try:
            side, rows = pickle.load(requests)
        except EOFError:
            return
        found = read if isinstance(read, Exception) else _attempt(partial(_arrays, read, side, rows))
        pickle.dump(found, answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _arrays(read: ImageReader, side: Side, rows: Sequence[ManifestRow]) -> list[NDArray[Any]]:
    """Return images as arrays, which are sent more easily than tensors."""
    return [image.numpy() for image in read(side, rows)]


def _attempt(do: Callable[[], Any]) -> Any:
    """Return what a function returns, or the exception that it raises, in a form that can be sent."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001 - raised again where the images were requested
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - whatever is wrong with it, its text can be sent
            return WorkError(f"{type(error).__name__}: {error}")
        return error


if __name__ == "__main__":
    _serve()
