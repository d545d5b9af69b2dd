"""The lock of a run in an object store: an object that its holder renews, and that anyone may take once it expired.

Nobody can tell a killed driver from a slow one. So each holds the run only for `LEASE_SECONDS` from its last renewal,
by the store's own clock, and a driver that finds its lease overdue writes nothing before it has renewed it. Every write
of the object is conditional on its last version, so that of two drivers one is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from semrsm_dist.errors import StorageError, unreadable
from semrsm_dist.store.locks import NOT_KNOWN, describe_holder, held_by_another
from semrsm_dist.store.objects import ObjectPath, Version

LEASE_SECONDS, RENEWAL_SECONDS, CLOCK_SECONDS = 60.0, 15.0, 2.0
"""How long a lease holds, how often it is renewed, and what stores round their times to, at most."""

log = logging.getLogger(__name__)


class Lease:
    """A lock that is an object."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._holder, self._token = "", uuid.uuid4().hex
        self._writes = 0
        self._held: Version | None = None
        self._renewed = 0.0  # by the monotonic clock
        self._loss: str | None = None
        self._one_at_a_time = threading.Lock()

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """As `DriverLock.hold`; waits for the lease of a driver that was killed to expire."""
        try:
            self._take()
        except OSError as error:
            raise StorageError(
                f"{self._path}: cannot be written ({error.strerror or error}); nothing was computed: check the name "
                "of the bucket, the network and the credentials in the environment, then repeat the command"
            ) from error
        ended = threading.Event()
        renewing = threading.Thread(target=self._keep, args=(ended,), name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self._release()

    def is_held(self) -> bool:
        """As `DriverLock.is_held`, by this machine's clock."""
        try:
            found = self._path.read_version()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unreadable(self._path, error, so=NOT_KNOWN) from error
        return not _is_released(found) and time.time() - _written(found).timestamp() <= LEASE_SECONDS

    @contextlib.contextmanager
    def share(self) -> Iterator[bool]:
        """As `DriverLock.share`: a lease cannot be shared, so a driver may start meanwhile."""
        yield self.is_held()

    def loss(self) -> str | None:
        """As `DriverLock.loss`: renews a lease that is overdue before anything is written."""
        if self._held is not None and time.monotonic() - self._renewed > LEASE_SECONDS - RENEWAL_SECONDS:
            try:
                self._renew()
            except OSError as error:
                return f"the lease could not be renewed ({error.strerror or error})"
        return self._loss

    def _take(self) -> None:
        """Write the object, once it is missing, released or expired."""
        self._holder = describe_holder()
        now, started, seen = self._read_clock(), time.monotonic(), None
        while True:
            begun = time.monotonic()
            try:
                found = self._path.read_version()
            except FileNotFoundError:
                found = None
            age = 0.0
            if found is not None and not _is_released(found):
                if seen is not None and found.content != seen:
                    raise held_by_another(self._path.parent, _describe(found))
                age = (now - _written(found)).total_seconds() + time.monotonic() - started
            if found is None or _is_released(found) or age > LEASE_SECONDS + CLOCK_SECONDS:
                self._held = self._path.write_if(self._content(), found)
                if self._held is not None:
                    self._renewed, self._loss = begun, None
                    return
                seen = b"" if found is None else found.content
            elif seen is None:
                seen = found.content
                log.warning(
                    "%s: held by %s; waiting up to %.0f s to see whether that driver is still at work",
                    self._path.parent,
                    _describe(found),
                    max(0.0, LEASE_SECONDS + CLOCK_SECONDS - age),
                )
            time.sleep(min(1.0, RENEWAL_SECONDS / 4))

    def _read_clock(self) -> datetime:
        """Return the time by the store's clock, and find that it keeps to conditions: not all do."""
        probe = self._path.parent / f"{self._path.name}.{self._token}"
        try:
            probe.write_if(b"first", None)
            if probe.write_if(b"second", None) is not None:
                raise StorageError(
                    f"{self._path}: this object store ignores conditions of writes (If-None-Match), so two drivers "
                    "could not be kept apart; nothing was computed: use one that keeps them, such as Amazon S3, "
                    "Google Cloud Storage or Azure, or a run on a file system"
                )
            return _written(probe.read_version())
        finally:
            probe.remove()

    def _keep(self, ended: threading.Event) -> None:
        """Renew the lease until the end."""
        while not ended.wait(RENEWAL_SECONDS) and self._loss is None:
            try:
                self._renew()
            except OSError as error:
                log.warning("%s: the lease cannot be renewed now (%s)", self._path, error.strerror or error)

    def _renew(self) -> None:
        with self._one_at_a_time:
            begun = time.monotonic()
            if self._held is None or self._loss is not None:
                return
            held = self._path.write_if(self._content(), self._held)
            if held is not None:
                self._held, self._renewed = held, begun
            elif self._path.exists():
                self._loss = "another driver has taken over the lease, which this one did not renew in time"
            else:
                self._loss = "the lock was removed while this driver was at work"

    def _release(self) -> None:
        """Let the next driver begin at once; if that fails, it waits for the lease to expire."""
        with self._one_at_a_time, contextlib.suppress(OSError):
            if self._held is not None and self._loss is None:
                self._path.write_if(self._content(released=True), self._held)
            self._held = None

    def _content(self, *, released: bool = False) -> bytes:
        """Return the next content of the object, which no other has."""
        self._writes += 1
        facts = {"holder": self._holder, "token": self._token, "write": self._writes}
        return json.dumps({**facts, "seconds": LEASE_SECONDS, "released": released}).encode()


def _facts(found: Version) -> dict[str, Any]:
    try:
        facts = json.loads(found.content)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_released(found: Version) -> bool:
    return _facts(found).get("released") is True


def _describe(found: Version) -> str:
    return str(_facts(found).get("holder", "unknown"))


def _written(found: Version) -> datetime:
    if found.written is None:
        raise ValueError("only what was read has a time")
    return found.written
