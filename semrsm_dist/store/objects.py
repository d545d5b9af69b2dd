"""Runs in object stores: whole objects below a prefix of a bucket, reached through obstore.

Credentials come from the environment of each process and never leave it. Errors that obstore raises become OSError, as
those of a file system, with its reasons shortened: they can quote requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import re
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from semrsm_dist.errors import ConfigError

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion
    from obstore.store import ObjectStore as Bucket
    from obstore.store import RetryConfig

RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(minutes=3)}
"""Requests that fail on the way or in the store (5xx) are repeated, with longer and longer pauses."""

PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between attempts at a conditional write."""


class Version(NamedTuple):
    """An object as it was read or written: its content, its tag for conditional writes, and when it was written."""

    content: bytes
    tag: UpdateVersion
    written: datetime | None = None


@dataclass(frozen=True)
class ObjectPath:
    """An object, or the prefix of several: what the store needs of `pathlib.Path`."""

    uri: str
    """Such as `s3://bucket/runs/digits/run.json`."""

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.uri}/{name}")

    def joinpath(self, *names: str) -> ObjectPath:
        """Return the path of something below."""
        return ObjectPath("/".join((self.uri, *names)))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> ObjectPath:
        """The prefix that this lies in."""
        return ObjectPath(self.uri.rpartition("/")[0])

    def is_absolute(self) -> bool:
        """Return True: what a URI names does not depend on the working directory."""
        return True

    def absolute(self) -> ObjectPath:
        """Return the path itself."""
        return self

    resolve = absolute

    def exists(self) -> bool:
        """Return whether there is an object of this name."""
        return self.look_up() is not None

    is_file = exists

    def is_dir(self) -> bool:
        """Return whether there are objects below."""
        return next(self.list_objects(), None) is not None

    def look_up(self) -> tuple[int, datetime] | None:
        """Return the bytes of the object and when it was written; None if there is none."""
        try:
            with _errors(self):
                meta = _obstore().head(self._bucket, self.key)
        except FileNotFoundError:
            return None
        return meta["size"], meta["last_modified"]

    def read_bytes(self) -> bytes:
        """Return the content of the object; raises FileNotFoundError if there is none."""
        return self.read_version().content

    def read_version(self) -> Version:
        """Return the object with its version; raises FileNotFoundError if there is none."""
        with _errors(self):
            found = _obstore().get(self._bucket, self.key)
            meta = found.meta
            return Version(bytes(found.bytes()), _tag_of(meta), meta["last_modified"])

    def write(self, content: bytes) -> None:
        """Write the object, whole."""
        with _errors(self):
            _obstore().put(self._bucket, self.key, content)

    def write_if(self, content: bytes, expected: Version | None) -> Version | None:
        """Write the object if it still is of a version or, with None, if there is none; return None if it is not so.

        The content must differ from all that others write: if the answer to a write is lost, which obstore does not
        repeat, it tells whose the object is.
        """
        for pause in PAUSES:
            try:
                return self._write_if_once(content, expected)
            except PermissionError:
                raise
            except OSError:
                time.sleep(pause)
        return self._write_if_once(content, expected)

    def _write_if_once(self, content: bytes, expected: Version | None) -> Version | None:
        mode: Literal["create"] | UpdateVersion = "create" if expected is None else expected.tag
        exceptions = _obstore().exceptions
        try:
            with _errors(self):
                try:
                    tag = _obstore().put(self._bucket, self.key, content, mode=mode, use_multipart=False)
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                    return self._written(content)
        except FileNotFoundError:  # what is to be replaced is gone
            return None
        return Version(content, _tag_of(tag))

    def remove(self) -> None:
        """Remove the object, if there is one."""
        with contextlib.suppress(FileNotFoundError), _errors(self):
            _obstore().delete(self._bucket, self.key)

    def remove_all(self) -> None:
        """Remove the objects below, a page of a listing at a time."""
        with _errors(self):
            for page in _obstore().list(self._bucket, self.key or None):
                _obstore().delete(self._bucket, [found["path"] for found in page])

    def list_objects(self) -> Iterator[tuple[str, int, datetime]]:
        """Yield the objects below: the rest of the name, bytes, and when it was written; read page by page."""
        start = len(self.key) + bool(self.key)
        with _errors(self):
            for page in _obstore().list(self._bucket, self.key or None):
                for found in page:
                    yield found["path"][start:], found["size"], found["last_modified"]

    def list_names(self) -> list[str]:
        """Return the names directly below, of objects and of prefixes."""
        with _errors(self):
            found = _obstore().list_with_delimiter(self._bucket, self.key or None)
        names = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(name.rpartition("/")[2] for name in names)

    def zarr_store(self) -> ZarrFolder:
        """Return what Zarr opens as the group or array of this path."""
        return ZarrFolder(self._bucket, folder=self)

    @property
    def root(self) -> str:
        """The bucket's URI."""
        return "/".join(self.uri.split("/", 3)[:3])

    @property
    def key(self) -> str:
        """The name in the bucket."""
        return "".join(self.uri.split("/", 3)[3:])

    @property
    def _bucket(self) -> Bucket:
        return _open_bucket(self.root)

    def _written(self, content: bytes) -> Version | None:
        """Return the object if it has this content."""
        try:
            found = self.read_version()
        except FileNotFoundError:
            return None
        return found if found.content == content else None


class ZarrFolder(ObjectStore[Any]):
    """Zarr's store of what lies below a path of a bucket, whose errors are those of a file system.

    Zarr itself knows no prefixes: of a group in a bucket, it would make groups of all that lies above.
    """

    def __init__(self, store: Bucket, *, read_only: bool = False, folder: ObjectPath) -> None:
        super().__init__(store, read_only=read_only)
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def with_read_only(self, read_only: bool = False) -> ZarrFolder:
        """As in Zarr."""
        return ZarrFolder(self.store, read_only=read_only, folder=self.folder)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As in Zarr."""
        with self._at(key) as whole:
            return await super().get(whole, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        """As in Zarr."""
        with self._at(key) as whole:
            return await super().exists(whole)

    async def set(self, key: str, value: Buffer) -> None:
        """As in Zarr."""
        with self._at(key) as whole:
            await super().set(whole, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """As in Zarr."""
        await asyncio.to_thread((self.folder / key).write_if, value.to_bytes(), None)

    async def delete(self, key: str) -> None:
        """As in Zarr."""
        with self._at(key) as whole:
            await super().delete(whole)

    async def delete_dir(self, prefix: str) -> None:
        """As in Zarr."""
        async for key in self.list_prefix(prefix):
            await self.delete(key)

    async def list(self) -> AsyncGenerator[str, None]:
        """As in Zarr."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """As in Zarr."""
        with self._at(prefix) as whole:
            async for key in super().list_prefix(whole):
                yield key[len(self.folder.key) + 1 :]

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """As in Zarr."""
        with self._at(prefix) as whole:
            async for name in super().list_dir(whole):
                yield name

    @contextlib.contextmanager
    def _at(self, key: str) -> Iterator[str]:
        """Yield the name in the bucket; in the block, errors are those of a file system."""
        path = self.folder / key if key else self.folder
        with _errors(path):
            yield path.key


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415 - an extra
        import obstore.exceptions  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "a run in an object store needs obstore, which is not installed here; nothing was computed: "
            "pip install 'semrsm-dist[objects]', on each node of a cluster"
        ) from error
    return obstore


@functools.cache
def _open_bucket(root: str) -> Bucket:
    """Return a bucket, with what the environment says of credentials, region and endpoint."""
    _obstore()
    from obstore.store import from_url  # noqa: PLC0415

    with _errors(ObjectPath(root)):
        opened: Bucket = from_url(root, retry_config=RETRIES)
    return opened


@contextlib.contextmanager
def _errors(path: ObjectPath) -> Iterator[None]:
    """Turn what obstore raises into OSError."""
    base = _obstore().exceptions.BaseError
    try:
        yield
    except (base, FileNotFoundError, PermissionError) as error:
        raise _translate(error, path) from None


def _translate(error: Exception, path: ObjectPath) -> OSError:
    """Return an error of a file system, without what obstore quotes of requests: that can hold keys and signatures."""
    text = str(error)
    status = re.search(r"status code: (\d{3})([A-Za-z ]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code and code[1] in ("NoSuchBucket", "ContainerNotFound"):
        return OSError(errno.EIO, f"there is no bucket {path.root!r}: create it, or correct the URI")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object", str(path))
    reason = f"{status[1]}{status[2].rstrip()}{f', {code[1]}' if code else ''}" if status else ""
    if isinstance(error, PermissionError) or (status and status[1] in ("401", "403")):
        return PermissionError(
            errno.EACCES, f"access refused ({reason}): check the credentials in the environment"
        )
    reason = reason or re.sub(r"\w+://\S+", "...", text.partition("\n")[0].rpartition(" - ")[2])
    return OSError(errno.EIO, f"the object store failed ({reason}): check the network and the endpoint")


def _tag_of(meta: ObjectMeta | PutResult) -> UpdateVersion:
    """Return what a store knows a version by: S3 by the ETag alone."""
    tag: UpdateVersion = {}
    if meta["e_tag"] is not None:
        tag["e_tag"] = meta["e_tag"]
    if meta["version"] is not None:
        tag["version"] = meta["version"]
    return tag
