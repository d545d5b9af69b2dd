"""Disturb small runs with a seeded sequence of faults, and check after each what a run promises.

    python jobs/chaos.py [--seed 0] [--faults 200] [--engine local ray cluster] [--folder FOLDER] [--table FILE]

A *round* is one run, of ready-made features or of scenes of digits. It is started again and again (a *session*), each
time with files damaged before and with one disturbance at a random moment, until it is finished, and a few times more.
`local` and `ray` start what they need themselves; `cluster` joins several nodes of Ray on this machine.

Checked after each session: it completed, or stopped with a known status and a message with reason and remedy; no
process, lock, shared memory or temporary file is left; no finished chunk was written again, unless it was damaged. And
after each round: every array has the values of an undisturbed run, once chunks that readers refuse were deleted and the
run was started again, as they say. The status is 1 if anything was violated.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")

import numpy as np
import psutil
import yaml
import zarr

ENGINES = ("local", "ray", "cluster")
SESSION_SECONDS = 400.0
GRACE_SECONDS = 60.0
POLL_SECONDS = 0.03
LARGEST_FILE = 1500
"""Bytes of the largest file in a session with such a limit: fewer than a chunk of features has, more than a tile."""

MARK = "SEMRSM_CHAOS"
"""An environment variable by which the processes of a session are known."""

LIBRARIES_FOLDERS = ("torchinductor_", "ray")
"""Folders in which PyTorch and Ray keep caches and logs beyond the end of a process."""

STATUSES = {0, 1, 2, 3, 130}
REMEDY = re.compile(
    "start|again|repeat|interrupted|continues|room|writable|choose|restore|check|delete|remove"
)


# --- runs to disturb ---------------------------------------------------------------------------------------


DATA = {"features": 5, "digits": 1}
"""What runs are made of, and how often."""


def make_inputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Write features, and return the configurations of the runs by name."""
    rng = np.random.default_rng(0)
    layers = {"early": (72, 16, 8), "late": (72, 9, 6)}
    for name, shape in layers.items():
        np.save(folder / f"{name}.npy", rng.normal(size=shape).astype(np.float32))
    return {
        "features": {
            "data": {"source": "features", "layers": {name: str(folder / f"{name}.npy") for name in layers}},
            "matching": {"tile": 6, "task_seconds": 0.5},
        },
        "digits": {
            "data": {"source": "digits", "n_images": 100},
            "model": {
                "name": "test_resnet",
                "weights": "digits",
                "layers": ["layer3", "layer4"],
            },
            "matching": {"tile": 8, "task_seconds": 0.5},
        },
    }


def values(run: Path) -> dict[str, str]:
    """Return a hash of the values of every array of a run, or the error in its place."""
    found = {}
    for file in sorted(run.glob("*.zarr/**/zarr.json")):
        try:
            node = zarr.open(file.parent, mode="r")
            if isinstance(node, zarr.Array):
                content = np.asarray(node[:])
                raw = content.tobytes() if content.dtype.kind in "iuf" else repr(content.tolist()).encode()
                found[file.parent.relative_to(run).as_posix()] = hashlib.sha256(raw).hexdigest()
        except Exception as error:  # noqa: BLE001 - what it is becomes the finding
            found[file.parent.relative_to(run).as_posix()] = f"{type(error).__name__}: {error}"
    return found


def delete_damaged(run: Path) -> bool:
    """Delete the files that readers refuse, as their messages say; return whether there were any."""
    found = False
    for name, value in values(run).items():
        if ": " in value:
            try:
                array = zarr.open_array(run / name, mode="r")
            except Exception:  # noqa: BLE001 - as above
                (run / name / "zarr.json").unlink()
                found = True
                continue
            for file in [path for path in (run / name / "c").rglob("*") if path.is_file()]:
                index = tuple(map(int, file.relative_to(run / name / "c").parts))
                try:
                    array.blocks[index]
                except Exception:  # noqa: BLE001 - as above
                    file.unlink()
                    found = True
    return found


def stamps(run: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of every finished chunk of features and every tile."""
    found = {}
    rows = [*run.glob("features.zarr/*/*/features/c/*/0"), *run.glob("tiles.zarr/*/tiles/c/0/*")]
    for row in rows:
        with contextlib.suppress(OSError), os.scandir(row) as files:
            for file in files:
                if file.name.isdigit():
                    with contextlib.suppress(FileNotFoundError):
                        stat = file.stat()
                        found[row / file.name] = stat.st_ino, stat.st_mtime_ns
    return found


# --- faults ------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """What a fault can reach: a run, the process at work on it if there is one, and the cluster."""

    rng: random.Random
    run: Path
    engine: str
    cluster: Cluster | None = None
    process: subprocess.Popen[bytes] | None = None
    damaged: set[Path] = field(default_factory=set)
    undo: list[Callable[[], object]] = field(default_factory=list)
    may_repeat: bool = False
    has_progress: bool = False

    def pick(self, *patterns: str) -> Path | None:
        """Return a random file of the run."""
        paths = sorted(path for pattern in patterns for path in self.run.glob(pattern) if path.is_file())
        return self.rng.choice(paths) if paths else None

    def workers(self) -> list[psutil.Process]:
        """Return Ray's worker processes that are at work for the run."""
        root = psutil.Process(self.process.pid if self.engine == "ray" else os.getpid())
        titles = {each: _title(each) for each in root.children(recursive=True)}
        return [each for each, title in titles.items() if title.startswith("ray::") and "Agent" not in title]


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes
    ----------
    name
        For the table.
    moment
        `before` a session, at its `launch` (it returns options of the process), or `during` it.
    do
        Does it to a scene; false if there is nothing to do it to.
    engines
        Where it can happen.
    """

    name: str
    moment: str
    do: Callable[[Scene], Any]
    engines: tuple[str, ...] = ENGINES


TARGETS = {
    "tile": ("tiles.zarr/*/tiles/c/0/*/*",),
    "feature chunk": ("features.zarr/*/*/features/c/*/0/0",),
    "norms or pooled vectors": ("features.zarr/*/*/*/c/*",),
    "coordinate": ("tiles.zarr/*/*/c/0",),
    "array's description": ("*.zarr/*/*/zarr.json", "*.zarr/*/*/*/zarr.json"),
    "group's description": ("*.zarr/zarr.json", "*.zarr/*/zarr.json"),
    "record": ("run.json",),
    "copy of the record": ("run.copy.json",),
    "manifest": ("images.parquet",),
    "summary": ("summary.json",),
    "ledger": ("events.jsonl",),
}


def _truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(1, path.stat().st_size)))


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _zero(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(path: Path, rng: random.Random) -> None:
    path.unlink()


DAMAGES = {"truncated": _truncate, "bit flipped": _flip, "zeroed": _zero, "deleted": _delete}


def damage(how: Callable[[Path, random.Random], None], patterns: Sequence[str]) -> Callable[[Scene], bool]:
    """Return a fault's `do` that damages a file of the run."""

    def do(scene: Scene) -> bool:
        path = scene.pick(*patterns)
        if path is None:
            return False
        with contextlib.suppress(FileNotFoundError):
            how(path, scene.rng)
        scene.damaged |= {path, *_of_same_chunk(path)}
        return True

    return do


def _of_same_chunk(path: Path) -> list[Path]:
    """Return what is made again with a file: features with their norms, and all of an array without description."""
    if path.name == "zarr.json":
        return [each for each in path.parent.rglob("*") if each.is_file()]
    layer = next((parent for parent in path.parents if parent.parent.parent.name == "features.zarr"), None)
    if layer is None:
        return []
    number = path.relative_to(layer).parts[2]
    return [
        each for name in layer.iterdir() for each in [name / "c" / number, name / "c" / number / "0" / "0"]
    ]


def swap(scene: Scene) -> bool:
    """Exchange two tiles of a layer."""
    one = scene.pick(*TARGETS["tile"])
    others = (
        [] if one is None else [path for path in one.parents[1].glob("*/*") if path.is_file() and path != one]
    )
    if one is None or not others:
        return False
    other = scene.rng.choice(sorted(others))
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    scene.damaged |= {one, other}
    return True


def stray(scene: Scene) -> bool:
    """Leave what a killed writer leaves, and a file that belongs to nobody."""
    beside = scene.pick(*TARGETS["tile"], *TARGETS["feature chunk"])
    if beside is None:
        return False
    beside.with_name(f"{beside.name}.0123abcd.partial").write_bytes(b"half")
    (scene.run / "run.json.tmp99").write_text("{")
    return True


def kill(number: signal.Signals, times: int = 1) -> Callable[[Scene], bool]:
    """Return a fault's `do` that sends a signal to the driver."""

    def do(scene: Scene) -> bool:
        for _ in range(times):
            scene.process.send_signal(number)
            time.sleep(0.3 if times > 1 else 0)
        return True

    return do


def pause(scene: Scene) -> bool:
    """Stop the driver for a while."""
    scene.process.send_signal(signal.SIGSTOP)
    time.sleep(scene.rng.uniform(0.5, 5))
    scene.process.send_signal(signal.SIGCONT)
    return True


def kill_worker(scene: Scene) -> bool:
    """Kill one of Ray's workers."""
    return _signal_some(scene, scene.workers(), signal.SIGKILL, 1)


def kill_workers(scene: Scene) -> bool:
    """Kill all of Ray's workers."""
    return _signal_some(scene, scene.workers(), signal.SIGKILL, 99)


def stop_worker(scene: Scene) -> bool:
    """Stop one of Ray's workers, for good if the run ends before."""
    victims = scene.workers()[:1]
    scene.may_repeat = True
    return _signal_some(scene, victims, signal.SIGSTOP, 1)


def exhaust_worker(scene: Scene) -> bool:
    """Leave a worker no more memory than it has."""
    if not scene.has_progress:
        return False  # a program that is being loaded cannot say anything
    victims = [psutil.Process(scene.process.pid)] if scene.engine == "local" else scene.workers()[:1]
    for victim in victims:
        with contextlib.suppress(psutil.Error, ValueError):
            victim.rlimit(psutil.RLIMIT_AS, (victim.memory_info().vms + 2**18, resource.RLIM_INFINITY))
    return bool(victims)


def _signal_some(scene: Scene, processes: Sequence[psutil.Process], number: int, most: int) -> bool:
    for process in scene.rng.sample(processes, min(most, len(processes))):
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
    return bool(processes)


def kill_ray(name: str) -> Callable[[Scene], bool]:
    """Return a fault's `do` that kills a process of the run's own Ray."""

    def do(scene: Scene) -> bool:
        victims = [
            each
            for each in psutil.Process(scene.process.pid).children(recursive=True)
            if name in _title(each)
        ]
        return _signal_some(scene, victims[:1], signal.SIGKILL, 1)

    return do


def lose_node(scene: Scene) -> bool:
    """Kill a node of the cluster with all its processes; another one comes afterwards."""
    scene.cluster.lose(scene.rng)
    scene.undo.append(scene.cluster.add)
    return True


def stop_node(scene: Scene) -> bool:
    """Stop a node of the cluster with all its processes: it is missed, and its work done elsewhere."""
    node = scene.cluster.stop(scene.rng)
    scene.undo.append(lambda: scene.cluster.replace(node))
    scene.may_repeat = True
    return True


def storage_error(scene: Scene) -> bool:
    """Have reading and writing in one of the run's folders fail for a moment, with an error that may pass."""
    folder = scene.pick(*TARGETS["tile"], *TARGETS["feature chunk"])
    if folder is None:
        return False
    folder = folder.parent
    aside = scene.run.parent / "aside"
    folder.rename(aside)
    folder.symlink_to(folder.name)  # a loop: ELOOP, whoever opens it

    def undo() -> None:
        if folder.is_symlink():
            folder.unlink()
            aside.rename(folder)

    if scene.rng.random() < 0.5:
        time.sleep(scene.rng.uniform(0.05, 0.5))
        undo()
    scene.undo.append(undo)
    return True


def read_only(scene: Scene) -> bool:
    """Take away the permission to write into the run's tiles."""
    folder = scene.run / "tiles.zarr"
    if not folder.exists():
        return False
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    if os.geteuid() == 0:  # whom permissions do not stop

        def switch(flag: str) -> None:
            subprocess.run(["chattr", flag, *map(str, folders)], check=False, capture_output=True)

        switch("+i")
        scene.undo.append(lambda: switch("-i"))
    else:
        for each in folders:
            each.chmod(0o555)
        scene.undo.append(lambda: [each.chmod(0o755) for each in folders])
    return True


def full_disk(scene: Scene) -> bool:
    """Give the run a disk of its own that is full but for some KiB."""
    if os.geteuid() != 0 or not scene.run.exists():
        return False
    copy = scene.run.with_name("copy")
    shutil.copytree(scene.run, copy, symlinks=True)
    if not _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", scene.run):
        shutil.rmtree(copy)
        return False
    shutil.copytree(copy, scene.run, dirs_exist_ok=True)
    used = sum(-(-path.stat().st_size // 4096) for path in scene.run.rglob("*")) + 4
    _mount("-o", f"remount,size={4 * (used + scene.rng.randrange(60))}k", scene.run)

    def undo() -> None:
        shutil.rmtree(copy)
        shutil.copytree(scene.run, copy, symlinks=True)
        subprocess.run(["umount", "--lazy", str(scene.run)], check=True)
        shutil.rmtree(scene.run)
        copy.rename(scene.run)

    scene.undo.append(undo)
    scene.damaged |= set(stamps(scene.run))  # it is copied, and back: inodes say nothing
    return True


def _mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def limit_files(scene: Scene) -> dict[str, Any]:
    """Let no file grow large."""
    limits = (LARGEST_FILE, resource.RLIM_INFINITY)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return {"preexec_fn": limit}


def closed_output(scene: Scene) -> dict[str, Any]:
    """Let nobody read standard output."""
    reader, writer = os.pipe()
    os.close(reader)
    scene.undo.append(lambda: os.close(writer))
    return {"stdout": writer}


def closed_error(scene: Scene) -> dict[str, Any]:
    """Let nobody read standard error."""
    options = closed_output(scene)
    return {"stderr": options["stdout"]}


RAY = ("ray", "cluster")
FAULTS = (
    *(
        Fault(f"{target} {how}", "before", damage(action, patterns))
        for target, patterns in TARGETS.items()
        for how, action in DAMAGES.items()
    ),
    *(
        Fault(f"{target} {how} while at work", "during", damage(DAMAGES[how], TARGETS[target]))
        for target, how in (
            ("tile", "bit flipped"),
            ("tile", "deleted"),
            ("feature chunk", "bit flipped"),
            ("feature chunk", "deleted"),
            ("array's description", "truncated"),
            ("record", "deleted"),
        )
    ),
    Fault("two tiles swapped", "before", swap),
    Fault("stray partial files", "before", stray),
    Fault("SIGKILL of the driver", "during", kill(signal.SIGKILL)),
    Fault("SIGTERM", "during", kill(signal.SIGTERM)),
    Fault("SIGINT", "during", kill(signal.SIGINT)),
    Fault("SIGINT three times", "during", kill(signal.SIGINT, 3)),
    Fault("SIGHUP", "during", kill(signal.SIGHUP)),
    Fault("driver stopped for a while", "during", pause),
    Fault("closed standard output", "launch", closed_output),
    Fault("closed standard error", "launch", closed_error),
    Fault("limit on the size of files", "launch", limit_files, ("local",)),
    Fault("full disk", "before", full_disk, ("local",)),
    Fault("no permission to write", "during", read_only),
    Fault("storage error", "during", storage_error),
    Fault("memory exhausted", "during", exhaust_worker),
    Fault("SIGKILL of a worker", "during", kill_worker, RAY),
    Fault("SIGKILL of all workers", "during", kill_workers, RAY),
    Fault("SIGSTOP of a worker", "during", stop_worker, RAY),
    Fault("SIGKILL of the raylet", "during", kill_ray("raylet/raylet"), ("ray",)),
    Fault("SIGKILL of the GCS", "during", kill_ray("gcs_server"), ("ray",)),
    Fault("node lost", "during", lose_node, ("cluster",)),
    Fault("node stopped", "during", stop_node, ("cluster",)),
)


class Cluster:
    """Several nodes of Ray on this machine, started by this process."""

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

    def lose(self, rng: random.Random) -> None:
        """Kill a random node."""
        self._cluster.remove_node(self._nodes.pop(rng.randrange(len(self._nodes))), allow_graceful=False)

    def stop(self, rng: random.Random) -> Any:
        """Stop a random node, and return it."""
        node = rng.choice(self._nodes)
        for process in self._processes(node):
            process.suspend()
        return node

    def replace(self, node: Any) -> None:
        """Remove a node, and add another."""
        processes = self._processes(node)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.add()

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()

    def _processes(self, node: Any) -> list[psutil.Process]:
        infos = [info for kind in node.all_processes.values() for info in kind]
        roots = [psutil.Process(info.process.pid) for info in infos if info.process.poll() is None]
        return [*roots, *(child for root in roots for child in root.children(recursive=True))]


# --- sessions and rounds -------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the faults of each kind."""

    done: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    n_violations: int = 0

    def table(self) -> str:
        """Return the table in Markdown."""
        rows = [
            "| fault | times | completed | stopped with remedy | violations |",
            "|---|---:|---:|---:|---:|",
        ]
        for fault in FAULTS:
            name = fault.name
            if self.done[name]:
                counts = self.done[name], self.completed[name], self.stopped[name], len(self.violations[name])
                rows.append(f"| {name} | {' | '.join(map(str, counts))} |")
        total = sum(self.done.values()), sum(self.completed.values()), sum(self.stopped.values())
        rows.append(f"| all | {' | '.join(map(str, total))} | {self.n_violations} |")
        return "\n".join(rows)


class Chaos:
    """The whole job; see the module."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.n_faults, self.engines, self.data, self.folder = (
            options.faults,
            options.engine,
            options.data,
            folder,
        )
        self.faults = [fault for fault in FAULTS if re.search(options.kinds, fault.name)]
        self.rng = random.Random(options.seed)
        self.tally = Tally()
        self.documents = make_inputs(folder)
        self.truth: dict[str, dict[str, str]] = {}
        self.n_stamps: dict[str, int] = {}
        self.cluster: Cluster | None = None
        self.session_number = 0

    def run(self) -> None:
        """Do rounds until there were enough faults."""
        number = 0
        try:
            while sum(self.tally.done.values()) < self.n_faults:
                engine = self.engines[number % len(self.engines)]
                name = self.rng.choices(self.data, [DATA[name] for name in self.data])[0]
                self._round(f"round-{number}", name, engine)
                number += 1
        finally:
            if self.cluster is not None:
                self.cluster.close()

    def _round(self, folder: str, name: str, engine: str) -> None:
        if engine == "cluster" and self.cluster is None:
            self.cluster = Cluster()
        if name not in self.truth:
            scene = Scene(self.rng, self.folder / f"whole-{name}", "local")
            self._session(scene, name, [])
            self.truth[name], self.n_stamps[name] = values(scene.run), len(stamps(scene.run))
        (self.folder / folder).mkdir()
        scene = Scene(self.rng, self.folder / folder / "run", engine, self.cluster)
        happened: list[str] = []
        for _ in range(self.rng.randint(2, 5)):
            faults = self._choose(scene)
            status = self._session(scene, name, faults)
            happened += [fault.name for fault in faults]
            if status == 0 and self.rng.random() < 0.5:
                break
        is_complete = self._finish(scene, name)
        if delete_damaged(scene.run):
            is_complete = self._finish(scene, name)
        if not is_complete:
            self._violate(happened, f"{folder}: the run does not complete when it is left alone")
        found = values(scene.run)
        wrong = [key for key in self.truth[name] if found.get(key) != self.truth[name][key]]
        for key in wrong:
            self._violate(happened, f"{folder}: {key} differs from an undisturbed run: {found.get(key)}")
        strays = [path for path in scene.run.rglob("*") if ".partial" in path.name or ".tmp" in path.name]
        if strays:
            self._violate(happened, f"{folder}: temporary files are left: {strays}")
        if not wrong:
            shutil.rmtree(self.folder / folder)

    def _finish(self, scene: Scene, name: str) -> bool:
        """Start the run without faults until it is complete, a few times at most; return whether it is."""
        return any(self._session(scene, name, []) == 0 for _ in range(3))

    def _choose(self, scene: Scene) -> list[Fault]:
        """Return faults before a session, and one during it; rare ones more likely."""
        chosen = []
        for moments, count in ((("before",), self.rng.randint(2, 5)), (("during", "launch"), 1)):
            known = [f for f in self.faults if f.moment in moments and scene.engine in f.engines]
            weights = [1 / (1 + 4 * self.tally.done[fault.name]) for fault in known]
            if known and (scene.run.exists() or "before" not in moments):
                chosen += self.rng.choices(known, weights, k=count)
        return list(dict.fromkeys(chosen))

    def _session(self, scene: Scene, name: str, faults: list[Fault]) -> int:
        """Start the run with faults, wait for its end, check, and return its exit status."""
        self.session_number += 1
        scene.may_repeat = scene.has_progress = False
        happened = [fault for fault in faults if fault.moment == "before" and fault.do(scene)]
        before = stamps(scene.run)
        options: dict[str, Any] = {}
        for fault in faults:
            if fault.moment == "launch":
                options |= fault.do(scene)
                happened.append(fault)
        stopping = next((fault for fault in faults if fault.moment == "during"), None)
        log = self.folder / f"session-{self.session_number}.log"
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix="t"))
        mark = f"{os.getpid()}-{self.session_number}"
        shared = _shared_memory()
        with log.open("wb") as output:
            options = {"stdout": output, "stderr": output} | options
            scene.process = subprocess.Popen(
                self._command(scene, name),
                env=os.environ | {MARK: mark, "TMPDIR": str(temporary), "RAY_TMPDIR": tempfile.gettempdir()},
                **options,
            )
            happened += self._watch(scene, name, stopping, before)
        status = scene.process.returncode
        for undo in reversed(scene.undo):
            undo()
        scene.undo.clear()
        names = [fault.name for fault in happened]
        for problem in self._check(scene, status, names, log, mark, temporary, shared):
            self._violate(names, f"session {self.session_number} ({scene.run}): {problem}")
        shutil.rmtree(temporary, ignore_errors=True)
        self.tally.done.update(names)
        (self.tally.completed if status == 0 else self.tally.stopped).update(names)
        print(
            f"{self.session_number}: {name} on {scene.engine}: {', '.join(names) or '-'}: {status}",
            flush=True,
        )
        return status

    def _command(self, scene: Scene, name: str) -> list[str]:
        document = self.folder / f"{name}.yaml"
        document.write_text(yaml.safe_dump({"run": str(scene.run), **self.documents[name]}))
        command = [sys.executable, "-m", "semrsm_dist", "run", str(document), "--set", f"run={scene.run}"]
        engine = "local" if scene.engine == "local" else "ray"
        command += ["--engine", engine, "--workers", "2"]
        return [*command, "--address", self.cluster.address] if scene.engine == "cluster" else command

    def _watch(
        self, scene: Scene, name: str, fault: Fault | None, before: dict[Path, tuple[int, int]]
    ) -> list[Fault]:
        """Wait for the end; do a fault on the way, and see that nothing finished is written again."""
        process, happened = scene.process, []
        moment = self.rng.uniform(0, 4) if self.rng.random() < 0.15 else None
        wanted = len(before) + self.rng.random() * (self.n_stamps.get(name, 1) - len(before))
        started, known, repeated = time.monotonic(), dict(before), set()
        while process.poll() is None:
            passed = time.monotonic() - started
            now = stamps(scene.run)
            repeated |= {path for path in now.keys() & known.keys() if now[path] != known[path]}
            known |= now
            scene.has_progress = len(now) > len(before)
            if fault is not None and (passed > moment if moment is not None else len(now) >= wanted):
                happened = [fault] if fault.do(scene) else []
                fault = None if happened else fault
            if passed > SESSION_SECONDS:
                self._violate([f.name for f in happened], f"session {self.session_number} does not end")
                process.kill()
            time.sleep(POLL_SECONDS)
        again = repeated - scene.damaged
        if again and not scene.may_repeat:
            names = [each.name for each in happened]
            self._violate(names, f"session {self.session_number}: written again: {sorted(again)[:5]}")
        return happened

    def _check(
        self,
        scene: Scene,
        status: int,
        names: list[str],
        log: Path,
        mark: str,
        temporary: Path,
        shared: set[str],
    ) -> Iterator[str]:
        """Yield what a session should not have done."""
        text = log.read_text(errors="replace")
        deadly = {-signal.SIGKILL for name in names if "driver" in name}
        if not text:  # Python itself was being loaded
            deadly |= {-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP}
        if status not in STATUSES | deadly:
            yield f"status {status}: {text[-300:]}"
        if "Traceback" in text:
            yield f"a traceback: {text[-1500:]}"
        silent = {"closed standard error"} & set(names)
        if status > 0 and not silent:
            said = [line for line in text.splitlines() if line.startswith("semrsm: ")]
            if not said or not REMEDY.search(text, text.index(said[0])):
                yield f"status {status} without reason and remedy: {text[-500:]}"
        left = _await_none(lambda: _marked(mark))
        if left:
            yield f"processes are left: {[(each.pid, _title(each)[:80]) for each in left]}"
            for each in left:
                with contextlib.suppress(psutil.Error):
                    each.kill()
        if scene.engine == "cluster":
            busy = _await_none(lambda: [p for p in scene.workers() if "IDLE" not in _title(p)])
            if busy:
                yield f"workers are left: {[(each.pid, _title(each)[:80]) for each in busy]}"
        if _is_locked(scene.run / "lock"):
            yield "the lock is still held"
        files = [path for path in temporary.iterdir() if not path.name.startswith(LIBRARIES_FOLDERS)]
        if files:
            yield f"temporary files are left: {files}"
        mine = _await_none(lambda: [name for name in _shared_memory() - shared if not _is_open(name)])
        if mine:
            yield f"shared memory is left: {mine}"

    def _violate(self, names: list[str], what: str) -> None:
        print(f"VIOLATION after {', '.join(names) or 'nothing'}: {what}", flush=True)
        self.tally.n_violations += 1
        for name in names or ["nothing"]:
            self.tally.violations[name].append(what)


def _await_none(look: Callable[[], list[Any]]) -> list[Any]:
    """Return what is still there after some time."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _marked(mark: str) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _shared_memory() -> set[str]:
    """Return the names of all shared memory but semaphores, which other programs use, and nothing here."""
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


def _is_open(name: str) -> bool:
    """Return whether a process has a file of shared memory open."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(region.path == f"/dev/shm/{name}" for region in process.memory_maps()):
                return True
    return False


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def main() -> int:
    """Run the job and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["local"])
    parser.add_argument(
        "--data",
        nargs="+",
        choices=tuple(DATA),
        default=list(DATA),
        help="what the runs are made of; images load PyTorch",
    )
    parser.add_argument("--kinds", default="", help="a regular expression: only faults whose names it finds")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    parser.add_argument("--table", type=Path, help="file that the table is written to, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chaos = Chaos(options, folder.absolute())
        with contextlib.suppress(KeyboardInterrupt):  # the table so far is worth something
            chaos.run()
    table = chaos.tally.table()
    print(f"\nseed {options.seed}, engines {', '.join(options.engine)}\n\n{table}")
    if options.table:
        options.table.write_text(f"{table}\n")
    is_whole = sum(chaos.tally.done.values()) >= options.faults
    return 0 if is_whole and not chaos.tally.n_violations else 1


if __name__ == "__main__":
    sys.exit(main())
