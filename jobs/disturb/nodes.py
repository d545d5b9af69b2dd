"""Nodes of Ray on this machine, and their faults: lost, stopped, slow."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import psutil

from disturb.scene import Fault, Scene

PAUSE, PACE = 0.4, 0.1
"""Seconds for which a slow node stands still, and for which it then works, by turns."""


class Cluster:
    """A head without work and two nodes of one CPU, started by this process."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster  # noqa: PLC0415 - takes long to load

        checks = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 10_000,
            "health_check_failure_threshold": 2,
        }
        head = {"num_cpus": 0, "_system_config": checks, "no_monitor": True, "include_log_monitor": False}
        self._cluster = RayCluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []
        self.add()
        self.add()
        self.address: str = self._cluster.address

    def add(self) -> None:
        """Add a node of one CPU."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, include_log_monitor=False))

    def choose(self, rng: random.Random) -> Any:
        """Return a random node."""
        return rng.choice(self._nodes)

    def lose(self, node: Any) -> None:
        """Kill a node with all its processes, stopped ones too."""
        processes = self.processes(node)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def lose_all(self) -> None:
        """Kill all nodes but the head."""
        for node in list(self._nodes):
            self.lose(node)

    def replace(self, node: Any) -> None:
        """Kill a node, and add another."""
        self.lose(node)
        self.add()

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()

    def processes(self, node: Any) -> list[psutil.Process]:
        """Return the processes of a node."""
        infos = [info for kind in node.all_processes.values() for info in kind]
        roots = [psutil.Process(info.process.pid) for info in infos if info.process.poll() is None]
        return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def _lose_node(scene: Scene) -> bool:
    """Kill a node; another one comes afterwards."""
    scene.cluster.lose(scene.cluster.choose(scene.rng))
    scene.undo.append(scene.cluster.add)
    return True


def _lose_all_nodes(scene: Scene) -> bool:
    """Kill all nodes that work; others come at once."""
    scene.cluster.lose_all()
    scene.cluster.add()
    scene.cluster.add()
    return True


def _stop_node(scene: Scene) -> bool:
    """Stop a node: it is missed, and its work done elsewhere."""
    node = scene.cluster.choose(scene.rng)
    for process in scene.cluster.processes(node):
        process.suspend()
    scene.undo.append(lambda: scene.cluster.replace(node))
    scene.may_repeat = True
    return True


def _slow_node(scene: Scene) -> bool:
    """Have a node stand still most of the time."""
    node, ended = scene.cluster.choose(scene.rng), threading.Event()

    def hold_up() -> None:
        while not ended.is_set():
            for act, seconds in (("suspend", PAUSE), ("resume", PACE)):
                for process in scene.cluster.processes(node):
                    with contextlib.suppress(psutil.Error):
                        getattr(process, act)()
                time.sleep(seconds)

    thread = threading.Thread(target=hold_up)
    thread.start()

    def undo() -> None:
        ended.set()
        thread.join()

    scene.undo.append(undo)
    scene.may_repeat = True
    return True


FAULTS = tuple(
    Fault(name, "during", do, ("cluster",))
    for name, do in (
        ("node lost", _lose_node),
        ("all nodes lost", _lose_all_nodes),
        ("node stopped", _stop_node),
        ("node slow", _slow_node),
    )
)
