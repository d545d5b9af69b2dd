"""Where tiles and orders are kept that took time to make: in memory, and in a folder of the run where that can be."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

from semrsm_dist.data.opening import read_file
from semrsm_dist.store.npy import replacing

log = logging.getLogger(__name__)

MEMORY_BYTES = 2**28
"""Of what was used last, in memory."""

FOLDER_BYTES = 2**31
"""In the folder; the oldest files are removed before there is more."""

_CHECKSUM = 4


class Cache:
    """Bytes by name, kept in a folder from one session to the next, or in memory alone.

    Losing it costs time and nothing else.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder if folder is None or _is_writable(folder) else None
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._memory_bytes = 0
        self._folder_bytes = sum(path.stat().st_size for path in self._files())

    def read(self, name: str) -> bytes | None:
        """Return what is kept by a name, or None."""
        with self._lock:
            if name in self._memory:
                self._memory.move_to_end(name)
                return self._memory[name]
        if self.folder is None:
            return None
        try:
            sealed = read_file(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s: cannot be read (%s); it is made again", self.folder / name, error.strerror)
            return None
        content, checksum = sealed[:-_CHECKSUM], sealed[-_CHECKSUM:]
        if zlib.crc32(content).to_bytes(_CHECKSUM, "little") != checksum:
            log.warning("%s: is damaged; it is made again", self.folder / name)
            return None
        self._remember(name, content)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Keep something; where the folder cannot be written to any more, in memory."""
        self._remember(name, content)
        if self.folder is None:
            return
        target = self.folder / name
        try:
            with replacing(target) as partial:
                partial.write_bytes(content + zlib.crc32(content).to_bytes(_CHECKSUM, "little"))
        except OSError as error:
            log.warning(
                "%s: cannot be written (%s); from now on, tiles are kept in memory", target, error.strerror
            )
            self.folder = None
            return
        with self._lock:
            self._folder_bytes += len(content)
            if self._folder_bytes > FOLDER_BYTES:
                self._make_room()

    def _remember(self, name: str, content: bytes) -> None:
        with self._lock:
            self._memory_bytes += len(content) - len(self._memory.pop(name, b""))
            self._memory[name] = content
            while self._memory_bytes > MEMORY_BYTES and len(self._memory) > 1:
                _, oldest = self._memory.popitem(last=False)
                self._memory_bytes -= len(oldest)

    def _files(self) -> list[Path]:
        return [] if self.folder is None else [path for path in self.folder.rglob("*") if path.is_file()]

    def _make_room(self) -> None:
        """Remove the oldest files until a quarter is free; another session may remove some, too."""
        known: list[tuple[float, int, Path]] = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                known.append((facts.st_mtime, facts.st_size, path))
        self._folder_bytes = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if self._folder_bytes <= 0.75 * FOLDER_BYTES:
                break
            path.unlink(missing_ok=True)
            self._folder_bytes -= size


def _is_writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
