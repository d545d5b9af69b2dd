"""The engine that runs workers on a Ray cluster; only this package imports Ray."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from semrsm_dist.engine.engines.ray.pools import ActorPool, TaskPool
from semrsm_dist.engine.engines.ray.requests import format_resources, ray_request
from semrsm_dist.engine.protocol import Engine, Resources, Worker
from semrsm_dist.errors import ConfigError, WorkError, first_line, reason_of
from semrsm_dist.machine import available_cpus

log = logging.getLogger(__name__)
ray_log = logging.getLogger(f"{__name__}.messages")

# Workers write their results themselves and send back receipts, so the object store holds almost nothing.
OBJECT_STORE_BYTES = 256 * 2**20
KNOCK_SECONDS = 10.0
HEAD_SECONDS = 30.0
"""How long a head may be away; after twice as long Ray would abort the driver."""
VITAL = ("gcs_server", "raylet")
"""Processes of a Ray on this machine that it cannot lose."""
# Custom resources by which an autoscaling cluster states its maximum size (see cluster.yaml): Ray does not report it.
GROWTH = {"CPU": "semrsm_max_cpus", "GPU": "semrsm_max_gpus"}


_heads_that_hang: set[str] = set()


class RayEngine(Engine):
    """Runs workers as Ray tasks and actors.

    `address` is that of a running cluster (`host:port` or `auto`). Without it the engine joins the cluster that the
    variable `RAY_ADDRESS` names, as it does inside a submitted job, and without that variable starts a Ray of its own
    on this machine, which ends with the engine. A Ray that this process has already joined is used as it is.
    """

    name = "ray"
    takes_address = True

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        super().__init__(workers, address)
        self._joined = not ray.is_initialized()
        self._messages = contextlib.ExitStack()
        if not self._joined:
            return
        if address is None and os.environ.get("RAY_ADDRESS"):
            address = "auto"
        try:
            with _sigterm_kept():
                self._messages.enter_context(_messages_logged())
                if address is None:
                    _start(workers or available_cpus())
                else:
                    _join(address)
        except BaseException:  # above all on an interrupt: leave nothing half-started
            self.close()
            raise

    @property
    def slots(self) -> int:
        """CPU slots for workers: what the cluster has or may grow to, at most `workers`, at least 1."""
        slots = max(1, self._largest("CPU"))
        return slots if self.workers is None else min(slots, self.workers)

    @property
    def gpus(self) -> int:
        """GPUs that the cluster has or may grow to."""
        return self._largest("GPU")

    def start_tasks(self, worker: Worker, resources: Resources) -> TaskPool:
        """Return a pool that runs the worker in Ray tasks."""
        self.require_room(resources)
        return TaskPool(worker, resources, self.fitting, self.workers, self.growing(resources))

    def start_actors(self, factory: Callable[[], Worker], count: int, resources: Resources) -> ActorPool:
        """Return a pool of `count` Ray actors, each with the worker that `factory` made inside it."""
        self.require_room(resources)
        return ActorPool(factory, max(1, count), resources, self.fitting)

    def describe(self) -> dict[str, object]:
        """Return the cluster's living nodes and what they offer to workers (memory in bytes)."""
        nodes = [node for node in _living_nodes() if node.get("CPU", 0) > 0 or node.get("GPU", 0) > 0]
        per_gpu = [node.get("memory", 0) / node["GPU"] for node in nodes if node.get("GPU", 0) > 0]
        return {
            "engine": self.name,
            "address": ray.get_runtime_context().gcs_address,
            "nodes": len(nodes),
            "cpus": self.slots,
            "gpus": self.gpus,
            "memory": int(sum(node.get("memory", 0) for node in nodes)),
            "memory_per_gpu": int(min(per_gpu, default=0)),
        }

    def close(self) -> None:
        """Leave the cluster, and end it if this engine started it; a Ray found running is left alone."""
        if self._joined:
            self._joined = False
            with self._messages:
                _leave()

    def fitting(self, resources: Resources) -> int:
        """Return how many workers with these needs the living nodes could hold if they were idle.

        Raises WorkError if a process of Ray on this machine has died without which the driver cannot go on.
        """
        nodes, own = _nodes(), ray.get_runtime_context().get_node_id()
        if any(node["NodeID"] == own and not node["Alive"] for node in nodes):
            _refuse_dead({"raylet"})  # the head knows before it has ended
        wanted = ray_request(resources)
        return sum(
            int(
                min(
                    (
                        node["Resources"].get(kind, 0) // amount
                        for kind, amount in wanted.items()
                        if amount > 0
                    ),
                    default=1,
                )
            )
            for node in nodes
            if node["Alive"]
        )

    def growing(self, resources: Resources) -> int:
        """Return how many the cluster may hold at its stated maximum size; 0 if it cannot grow.

        The memory of future nodes is not known.
        """
        wanted = {
            kind: amount for kind, amount in ray_request(resources).items() if kind in GROWTH and amount > 0
        }
        nodes = _living_nodes()
        if not any(self._largest(kind) > sum(node.get(kind, 0) for node in nodes) for kind in wanted):
            return 0
        return int(min(self._largest(kind) // amount for kind, amount in wanted.items()))

    def require_room(self, resources: Resources) -> None:
        """Refuse workers that Ray would wait for forever: no living node has room, and the cluster cannot grow."""
        living = _living_nodes()
        if not living:
            raise WorkError(
                "no node of Ray is alive any more: its processes died or were ended; what was finished is kept: start "
                "the run's command"
            )
        if self.fitting(resources) or self.growing(resources):
            return
        nodes = "; ".join(format_resources(node) for node in living)
        raise ConfigError(
            f"a worker needs {resources}, but no node has that (there are: {nodes}), and the cluster does not say that "
            f"it can grow, so the run would wait forever; it was stopped: request less (matching.worker_memory), "
            f"add nodes, or give the head of a growing cluster the resources {' and '.join(GROWTH.values())}"
        )

    def _largest(self, kind: str) -> int:
        nodes = _living_nodes()
        return max(sum(int(node.get(name, 0)) for node in nodes) for name in (kind, GROWTH[kind]))


def _require_ray() -> None:
    """Raise if a process of Ray has died that the driver needs: Ray would abort the driver, and not say what to do.

    Of a Ray that was started here these are known; of one that was joined, they are sought where they listen.
    """
    node = getattr(ray_worker, "_global_node", None)
    if node is None:
        return
    dead = {name for name, _ in node.dead_processes()} & set(VITAL)
    with socket.socket(socket.AF_UNIX) as raylet:
        try:
            raylet.connect(node.raylet_socket_name)
        except (ConnectionRefusedError, FileNotFoundError):
            dead.add("raylet")
    _refuse_dead(dead)
    _await_head(node.gcs_address)


def _refuse_dead(processes: Set[str]) -> None:
    if processes:
        raise WorkError(
            f"Ray's process {' and '.join(sorted(processes))} on this machine died, perhaps for lack of memory; what "
            "was finished is kept: start the run's command"
        )


def _await_head(address: str) -> None:
    """Raise if a cluster's head has not answered for `HEAD_SECONDS`; it may be started again."""
    deadline = time.monotonic() + HEAD_SECONDS
    while True:
        try:
            return _ask_head(address)
        except (OSError, RayError) as error:
            if time.monotonic() > deadline:
                raise WorkError(
                    f"the head of the Ray cluster at {address} does not answer any more ({reason_of(error)}); what was "
                    "finished is kept: start the run's command once the cluster runs again"
                ) from error
        time.sleep(1)


def _ask_head(address: str) -> None:
    """Raise OSError or RayError if a cluster's head does not answer: other calls of Ray wait for it for ever.

    One that hangs still takes connections; where nothing listens, knocking is quicker.
    """
    _knock(address)
    client = ray_worker.global_worker.gcs_client  # type: ignore[attr-defined]
    client.check_alive([], timeout=KNOCK_SECONDS)


def _living_nodes() -> list[Mapping[str, float]]:
    """Return the resources of each living node."""
    return [node["Resources"] for node in _nodes() if node["Alive"]]


def _nodes() -> list[dict[str, Any]]:
    """Return what the head knows of each node, once it has answered: without it Ray waits and ends the driver."""
    _require_ray()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def _leave() -> None:
    """Leave the cluster; one whose head hangs is not told, as Ray would wait for it for ever."""
    node = getattr(ray_worker, "_global_node", None)
    if node is not None:
        try:
            _ask_head(node.gcs_address)
        except RayError as error:
            log.warning(
                "the head of the Ray cluster at %s hangs (%s), so it is not told that this process leaves: Ray may "
                "wait for it when the process ends",
                node.gcs_address,
                reason_of(error),
            )
            _heads_that_hang.add(node.gcs_address)
            return
        except OSError:  # nothing listens, and Ray notices that
            pass
    ray.shutdown()


def has_hung_threads() -> bool:
    """Return whether threads of Ray wait for a head that hangs: the interpreter could wait for them for ever."""
    return bool(_heads_that_hang)


def _start(cpus: int) -> None:
    try:
        _make_token()
        with _without_uv(), _on_loopback(), _without_waiting():
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **_quiet(),
            )
    except OSError as error:
        variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
        place = f"{os.environ[variable]} ({variable})" if variable else tempfile.gettempdir()
        raise ConfigError(
            f"Ray cannot start on this machine with its sockets and logs below {place}: {error}; nothing was computed: "
            "set RAY_TMPDIR to a folder of your own with a path of at most 40 characters, such as "
            f"/tmp/{getpass.getuser()}"
        ) from error
    except Exception as error:
        if type(error) not in (Exception, RuntimeError):  # Ray has no type of its own for this
            raise
        raise WorkError(
            f"Ray did not start on this machine: {first_line(error)} What was finished is kept: start the run's "
            "command when the machine has less to do, or use the engine local"
        ) from error


def _make_token() -> None:
    """Make the token of Ray's authentication, unless there is one or it is switched off: Ray's is readable for all."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    token.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=token.parent)  # which its owner alone can read
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(draft, token)
    finally:
        Path(draft).unlink()


def _join(address: str) -> None:
    place = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    if "://" in place:
        raise ConfigError(
            f"address={place!r} is for Ray Client or for the dashboard; a run joins the cluster itself. Give the "
            "host:port of its head (6379 by default) from one of its nodes, or submit the run with ray job submit"
        )
    try:
        _knock(place)
        with _without_uv():
            ray.init(address=address, **_quiet())
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cannot join the Ray cluster at address={place!r}: {error}. Check that it runs (ray status) and that its "
            "token is on this machine (~/.ray/auth_token, with RAY_AUTH_MODE=token in the environment), or leave the "
            "address out and unset RAY_ADDRESS to start Ray on this machine"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at a ``host:port``: Ray itself would try for five minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _quiet() -> dict[str, Any]:
    """Keep Ray's chatter, and what workers print, off the driver's stderr; it is in Ray's log files."""
    return {"log_to_driver": False, "logging_level": logging.WARNING}


def _messages_logged() -> contextlib.AbstractContextManager[None]:
    """Send Ray's messages to logging for as long as the block lasts.

    Ray prints them on stdout, where results go, even with `log_to_driver=False`, and has no setting for that.
    """

    def to_log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        for line in data["lines"]:
            ray_log.debug("(%s) %s", data["pid"], line)

    return _replaced(ray_worker, "print_to_stdstream", to_log)


def _without_uv() -> contextlib.AbstractContextManager[None]:
    """Have workers use this environment also where `uv run` started the driver, unless the user says otherwise.

    Ray would send the whole working directory to every worker, and have uv build an environment there.
    """
    return _unless_set("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")


def _on_loopback() -> contextlib.AbstractContextManager[None]:
    """Have a Ray of our own listen on this machine's loopback alone, unless the user says otherwise.

    Ray does so by itself on macOS and Windows; elsewhere it would listen on all interfaces.
    """
    return _unless_set("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "ENABLE_RAY_CLUSTER")


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """Start Ray without waiting for its first workers: if one of them is lost meanwhile, it would wait for ever."""
    variable = "RAY_prestart_worker_first_driver"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = "0"
    try:
        yield
    finally:
        del os.environ[variable]


def _unless_set(variable: str, constant: str) -> contextlib.AbstractContextManager[None]:
    """Switch one of Ray's features off in the block, unless its environment variable is set."""
    return contextlib.nullcontext() if variable in os.environ else _replaced(ray_constants, constant, False)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: object) -> Iterator[None]:
    """Replace a private part of Ray in the block, if this version of Ray has it."""
    before = getattr(module, name, None)
    if before is None:
        ray_log.debug("Ray %s has no %s.%s", ray.__version__, module.__name__, name)
        yield
        return
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep a SIGTERM until Ray has started, and then leave it to the program's own handler.

    Ray would install handlers that exit, and it crashes where it is stopped in the middle of its start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    has_timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not has_timer:  # Ray's C++ side sets an alarm that aborts the process after 3 s
            signal.alarm(0)

    handler = signal.signal(signal.SIGTERM, keep)
    try:
        with _replaced(ray_utils, "set_sigterm_handler", lambda ray_handler: None):
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        if came:
            signal.raise_signal(signal.SIGTERM)
