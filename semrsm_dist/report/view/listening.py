"""Where a run is served, which is known before all that serving it needs is loaded."""

from __future__ import annotations

import errno
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from semrsm_dist.errors import ConfigError, StorageError, reason_of

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listener:
    """An open port, and the token that addresses begin with.

    Who connects before anybody answers waits.
    """

    socket: socket.socket
    host: str
    token: str

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{_shown(self.host)}:{self.socket.getsockname()[1]}/{self.token}/"


@contextmanager
def listen(host: str, port: int) -> Iterator[Listener]:
    """Listen at a port, 0 for any that is free, with a token that nobody can guess.

    Raises
    ------
    ConfigError
        If there is no such port.
    StorageError
        If the port is taken or not allowed, or the host is none of this machine.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"--port: {port}: expected a number from 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # the latter of a name that cannot be one
        is_port = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = (
            "choose another --port, or leave it out for any that is free"
            if is_port
            else "choose another --host, a name or address of this machine, or leave it out for this machine alone"
        )
        raise StorageError(f"{host}:{port}: cannot be listened at ({reason_of(error)}); {remedy}") from error
    with opened:
        yield Listener(opened, host, secrets.token_urlsafe(24))


def _shown(host: str) -> str:
    """Return a host as it stands in an address; this machine's name for one that stands for all its addresses."""
    if host in ("", "0.0.0.0", "::"):
        return socket.getfqdn()
    return f"[{host}]" if ":" in host else host
