"""Faults of processes: signals, lost and stopped ones, exhausted memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Callable, Sequence

import psutil

from disturb.scene import Fault, Scene, title_of

ACTOR = "ray::Holder"
"""How the titles of Ray's processes that extract features begin."""


def _signal_driver(number: signal.Signals, times: int = 1) -> Callable[[Scene], bool]:
    """Return a fault's `do` that sends a signal to the driver."""

    def do(scene: Scene) -> bool:
        for _ in range(times):
            scene.process.send_signal(number)
            time.sleep(0.3 if times > 1 else 0)
        return True

    return do


def _pause_driver(scene: Scene) -> bool:
    """Stop the driver for a while."""
    scene.process.send_signal(signal.SIGSTOP)
    time.sleep(scene.rng.uniform(0.5, 5))
    scene.process.send_signal(signal.SIGCONT)
    return True


def _signal_workers(number: signal.Signals, most: int, title: str = "ray::") -> Callable[[Scene], bool]:
    """Return a fault's `do` that sends a signal to some of Ray's processes whose titles begin so."""

    def do(scene: Scene) -> bool:
        return _signal_some(scene, scene.workers(title), number, most)

    return do


def _stop_worker(scene: Scene) -> bool:
    """Stop one of Ray's workers for good."""
    scene.may_repeat = True
    return _signal_some(scene, scene.workers()[:1], signal.SIGSTOP, 1)


def _signal_some(scene: Scene, processes: Sequence[psutil.Process], number: int, most: int) -> bool:
    for process in scene.rng.sample(processes, min(most, len(processes))):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    return bool(processes)


def _exhaust_memory(scene: Scene) -> bool:
    """Leave a worker no more memory than it has."""
    if not scene.has_progress:
        return False  # a program that is being loaded cannot say anything
    victims = [psutil.Process(scene.process.pid)] if scene.engine == "local" else scene.workers()[:1]
    for victim in victims:
        with contextlib.suppress(psutil.Error, ValueError):
            victim.rlimit(psutil.RLIMIT_AS, (victim.memory_info().vms + 2**18, resource.RLIM_INFINITY))
    return bool(victims)


def _kill_ray(program: str) -> Callable[[Scene], bool]:
    """Return a fault's `do` that kills a process of the run's own Ray."""

    def do(scene: Scene) -> bool:
        return _signal_some(scene, _processes_of_ray(scene, program), signal.SIGKILL, 1)

    return do


def _pause_ray(program: str) -> Callable[[Scene], bool]:
    """Return a fault's `do` that stops a process of the run's own Ray for a while."""

    def do(scene: Scene) -> bool:
        found = _processes_of_ray(scene, program)
        _signal_some(scene, found, signal.SIGSTOP, 1)
        time.sleep(scene.rng.uniform(0.5, 5))
        _signal_some(scene, found, signal.SIGCONT, 1)
        return bool(found)

    return do


def _processes_of_ray(scene: Scene, program: str) -> list[psutil.Process]:
    """Return the first process of the run's own Ray whose title has that in it, in a list, or none."""
    children = psutil.Process(scene.process.pid).children(recursive=True)
    return [each for each in children if program in title_of(each)][:1]


RAY = ("ray", "cluster")
FAULTS = (
    Fault("SIGKILL of the driver", "during", _signal_driver(signal.SIGKILL)),
    Fault("SIGKILL of the driver that extracts features", "extraction", _signal_driver(signal.SIGKILL)),
    Fault("SIGTERM", "during", _signal_driver(signal.SIGTERM)),
    Fault("SIGINT", "during", _signal_driver(signal.SIGINT)),
    Fault("SIGINT three times", "during", _signal_driver(signal.SIGINT, 3)),
    Fault("SIGHUP", "during", _signal_driver(signal.SIGHUP)),
    Fault("driver stopped for a while", "during", _pause_driver),
    Fault("memory exhausted", "during", _exhaust_memory),
    Fault("SIGKILL of a worker", "during", _signal_workers(signal.SIGKILL, 1), RAY),
    Fault("SIGKILL of all workers", "during", _signal_workers(signal.SIGKILL, 99), RAY),
    Fault("SIGSTOP of a worker", "during", _stop_worker, RAY),
    Fault(
        "SIGKILL of an actor that extracts features",
        "extraction",
        _signal_workers(signal.SIGKILL, 1, ACTOR),
        RAY,
    ),
    Fault(
        "SIGKILL of all actors that extract features",
        "extraction",
        _signal_workers(signal.SIGKILL, 99, ACTOR),
        RAY,
    ),
    Fault("SIGKILL of the raylet", "during", _kill_ray("raylet/raylet"), ("ray",)),
    Fault("SIGKILL of the GCS", "during", _kill_ray("gcs_server"), ("ray",)),
    Fault("SIGKILL of the agent", "during", _kill_ray("dashboard/agent.py"), ("ray",)),
    Fault("SIGKILL of the agent of environments", "during", _kill_ray("runtime_env/agent"), ("ray",)),
    Fault("raylet stopped for a while", "during", _pause_ray("raylet/raylet"), ("ray",)),
    Fault("GCS stopped for a while", "during", _pause_ray("gcs_server"), ("ray",)),
)
