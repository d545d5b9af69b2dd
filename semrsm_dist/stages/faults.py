"""From an exception in a worker to the receipt that the driver decides by."""

from __future__ import annotations

import traceback
from collections.abc import Hashable

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.errors import SemrsmError, StorageError
from semrsm_dist.store.directory import FATAL_ERRNOS


def failure_receipt(unit: Hashable, error: Exception) -> Receipt:
    """Describe a failed unit: the message of an error meant for users, the traceback of any other.

    A full or read-only file system fails every other unit too, so it is marked fatal.
    """
    fatal = isinstance(error, OSError) and error.errno in FATAL_ERRNOS
    if isinstance(error, SemrsmError) and not isinstance(error, StorageError):
        return Receipt(unit, error=str(error), fatal=fatal)
    if isinstance(error, OSError):
        return Receipt(unit, error=f"{type(error).__name__}: {error}", fatal=fatal)
    return Receipt(unit, error="".join(traceback.format_exception(error)))
