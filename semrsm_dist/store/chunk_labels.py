"""Chunks that say what they are: the run, the array and the place in it.

A label is a *skippable frame* of the Zstandard format (RFC 8878, 3.1.2), which every decoder passes over. It stands
behind the chunk's last Zstandard frame and before the checksum, which covers it as well. So it costs no file of its
own, is written in one step with what it describes, and Zarr's own readers, and xarray's, need nothing of this package.

The run is named by an id of its fingerprint: equal runs write equal bytes, and a chunk of a copy of the run fits.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.storage import WrapperStore

from semrsm_dist.store.fingerprint import Fingerprint

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

ORIGIN = "origin"
"""Attribute of an array: the run and the array that its chunks name as theirs."""

_HEADER = struct.Struct("<II")  # magic number and size of a skippable frame
_MAGIC = 0x184D2A5E
_PREFIX = "semrsm:"
_CHECKSUM_BYTES = 4
_LONGEST = 4096
"""Bytes at the end of a chunk in which its label is: a layer's name has at most 200."""


def run_id(fingerprint: Fingerprint) -> str:
    """Return an id of what the numbers of a layer depend on: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]


def origin(run: str, *path: str) -> str:
    """Return the origin of an array's chunks: the run's id, and the array's path in the run."""
    return "/".join([run, *path])


def add_label(chunk: bytes, address: str) -> bytes:
    """Return an encoded chunk, which ends with its checksum, with a label before it."""
    label = _frame(address)
    checksum = google_crc32c.extend(int.from_bytes(chunk[-_CHECKSUM_BYTES:], "little"), label)
    return b"".join(
        [memoryview(chunk)[:-_CHECKSUM_BYTES], label, checksum.to_bytes(_CHECKSUM_BYTES, "little")]
    )


def has_label(end: bytes, address: str) -> bool:
    """Return whether the end of an encoded chunk is the label of this address and a checksum."""
    return end[:-_CHECKSUM_BYTES].endswith(_frame(address))


def read_label(chunk: bytes) -> str | None:
    """Return the address in the label of an encoded chunk; None if it has none, or its checksum is wrong."""
    content, checksum = chunk[:-_CHECKSUM_BYTES], chunk[-_CHECKSUM_BYTES:]
    if google_crc32c.value(content).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        return None
    start = content.rfind(_HEADER.pack(_MAGIC, 0)[:4])
    text = content[start + _HEADER.size :].decode(errors="replace") if start >= 0 else ""
    return text.removeprefix(_PREFIX) if text.startswith(_PREFIX) else None


def _frame(address: str) -> bytes:
    content = f"{_PREFIX}{address}".encode()
    return _HEADER.pack(_MAGIC, len(content)) + content


class LabellingStore(WrapperStore[Store]):
    """The store of one array, which labels the chunks that are written and checks those that are read.

    `refuse` is called with the key and the bytes of a chunk that is labelled otherwise, and raises.
    """

    def __init__(self, store: Store, origin: str, refuse: Callable[[str, bytes], None]) -> None:
        super().__init__(store)
        self._origin, self._refuse = origin, refuse

    @property
    def wrapped(self) -> Store:
        """The store of unlabelled chunks."""
        return self._store

    def _with_store(self, store: Store) -> LabellingStore:
        return LabellingStore(store, self._origin, self._refuse)

    def __str__(self) -> str:
        return str(self._store)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a chunk with its label."""
        if _is_chunk(key):
            value = type(value).from_bytes(add_label(value.to_bytes(), f"{self._origin}/{key}"))
        await self._store.set(key, value)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a chunk whose label fits."""
        value = await self._store.get(key, prototype, byte_range)
        if value is not None and _is_chunk(key):
            end = np.asarray(value.as_numpy_array())[-_LONGEST:].tobytes()
            if not has_label(end, f"{self._origin}/{key}"):
                self._refuse(key, value.to_bytes())
        return value


def _is_chunk(key: str) -> bool:
    return key.partition("/")[0] == "c"
