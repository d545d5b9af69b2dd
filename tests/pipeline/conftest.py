"""What the tests of whole runs share: small inputs, the command as a process, and a look at a run directory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.cli import commands as cli
from semrsm_dist.config.schema import parse_config
from semrsm_dist.engine import Engine
from semrsm_dist.progress import Reporter, SilentReporter, Stage

GROUPS = ("features.zarr", "tiles.zarr", "rsm.zarr")

COMMAND = (sys.executable, "-m", "semrsm_dist")

Document = dict[str, Any]

# In a process of its own: the peak of its memory before the run (libraries, compiled code) and after it.
MEASURE = """
import json, sys
import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

warm, wanted = json.load(sys.stdin)
srs.run(parse_config(warm))
before = peak()
srs.run(parse_config(wanted))
json.dump([before, peak()], sys.stdout)
"""


class Workshop:
    """A folder in which a test makes inputs, runs, and looks at what is on disk.

    Every document is one that a user could write; sections given as keywords are added to it or replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # --- inputs --------------------------------------------------------------------------------------

    def features(
        self, name: str = "z.npy", shape: tuple[int, ...] = (20, 6, 4), seed: int = 0, dtype: str = "float32"
    ) -> Path:
        """Write random features and return the file."""
        return self.save(name, np.random.default_rng(seed).normal(size=shape).astype(dtype))

    def save(self, name: str, z: NDArray[Any]) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, z)
        return path

    def image(self, name: str, *, mode: str = "RGB", size: tuple[int, int] = (40, 48), seed: int = 0) -> Path:
        """Write an image of smooth random blobs in any mode, and return the file."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *name.encode()])
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        picture = small.resize(size, Image.Resampling.BICUBIC)
        if mode == "I;16":
            picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        else:
            picture = picture.convert(mode)
        picture.save(path)
        return path

    def images(self, folder: str = "images", n: int = 12) -> Path:
        """Write a folder of images of mixed sizes in three classes, and return it."""
        for index in range(n):
            self.image(f"{folder}/class{index % 3}/{index:03d}.png", size=(36 + index, 50 - index % 7))
        return self.path / folder

    def spoil(self, folder: Path) -> list[str]:
        """Put four unreadable files into a folder of `images`, and return their names."""
        good = (folder / "class0" / "000.png").read_bytes()
        (folder / "class0" / "cut.png").write_bytes(good[: len(good) // 2])
        (folder / "class1" / "empty.jpg").write_bytes(b"")
        (folder / "class1" / "text.png").write_text("no image")
        photo = self.image("photo.jpg").read_bytes()
        (folder / "class2" / "half.jpg").write_bytes(photo[:400])
        return ["class0/cut.png", "class1/empty.jpg", "class1/text.png", "class2/half.jpg"]

    def of_features(self, run: str, layers: dict[str, Path] | Path, **sections: Any) -> Document:
        """Return the configuration of a run on ready-made features."""
        layers = {"last": layers} if isinstance(layers, Path) else layers
        return {
            "run": str(self.path / run),
            "data": {"source": "features", "layers": {name: str(path) for name, path in layers.items()}},
            **sections,
        }

    def of_images(self, run: str, folder: Path, **sections: Any) -> Document:
        """Return the configuration of a run on images through a tiny network."""
        return {
            "run": str(self.path / run),
            "data": {"source": "folder", "path": str(folder)},
            "model": {
                "name": "test_resnet",
                "weights": "random",
                "layers": ["layer3", "layer4"],
                "input_size": 64,
            },
            **sections,
        }

    # --- runs ----------------------------------------------------------------------------------------

    def run(
        self,
        document: Document,
        *,
        engine: Engine | None = None,
        before: tuple[str, Callable[[], object]] | None = None,
        reporter: Reporter | None = None,
    ) -> dict[str, Any]:
        """Run in this process and return the summary; `before` a stage begins, do something."""
        reporter = Before(*before) if before else reporter
        return srs.run(document, engine=engine, reporter=reporter).summary()

    def measure_memory(self, warm: Document, wanted: Document) -> int:
        """Return by how many bytes a run raises the peak memory of a process that has done a small one."""
        done = subprocess.run(
            [sys.executable, "-c", MEASURE],
            input=json.dumps([warm, wanted]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        before, after = json.loads(done.stdout)
        return int(after - before)

    def interrupt(self, document: Document, stage: str, after: int) -> bool:
        """Run in this process until `after` units of a stage are done; return False if it came to its end before."""
        stop = threading.Event()
        try:
            srs.run(parse_config(document), reporter=StopAfter(stage, after, stop), stop=stop)
        except KeyboardInterrupt:
            return True
        return False

    def write(self, document: Document, name: str = "config.yaml") -> Path:
        """Write a configuration file and return it."""
        path = self.path / name
        path.write_text(yaml.safe_dump(document))
        return path

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command `semrsm` to its end, in this process, which has the libraries loaded."""
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(self.path),
        ):
            status = cli.main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def process(self, *arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start the command `semrsm`; what is left of it at the end is killed, this process alone."""
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.path,
            **options,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()

    # --- looking at the disk -------------------------------------------------------------------------

    def tree(self, folder: Path) -> dict[str, str]:
        """Return the hash of every file below a folder, except of those about a session and what a kill cut short."""
        of_sessions = ("lock", "events.jsonl", "progress.json", "inventory.parquet")
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in of_sessions and path.suffix != ".partial"
        }

    def chunks(self, run: Path, *groups: str) -> dict[str, tuple[int, int]]:
        """Return inode and time of every finished chunk in these groups of a run.

        Features are written last of what belongs to a feature chunk, and alone make it finished. Coordinates of tiles
        are written again when labels change.
        """
        stamps = {}
        for group in groups or ("features.zarr", "tiles.zarr"):
            for path in (run / group).rglob("c/**/*"):
                with contextlib.suppress(
                    FileNotFoundError
                ):  # a temporary file that has got its name just now
                    if not path.name.isdigit() or {"token_count", "squared_norm", "pooled"} & set(path.parts):
                        continue
                    if group == "tiles.zarr" and path.parts[-5] != "tiles":
                        continue
                    if path.is_file():
                        stat = path.stat()
                        stamps[path.relative_to(run).as_posix()] = (stat.st_ino, stat.st_mtime_ns)
        return stamps

    def tiles(self, run: Path) -> list[Path]:
        """Return the files of the solved tiles that are there."""
        return sorted(run / name for name in self.chunks(run, "tiles.zarr"))


class Before(SilentReporter):
    """A reporter that does something when a stage begins."""

    def __init__(self, stage: str, action: Callable[[], object]) -> None:
        self._wanted = stage
        self._action = action

    def stage(self, name: str, *arguments: Any, **options: Any) -> contextlib.AbstractContextManager[Stage]:
        if name == self._wanted:
            self._action()
        return super().stage(name, *arguments, **options)


class StopAfter:
    """A reporter that asks the run to stop when a stage has got so far."""

    def __init__(self, stage: str, after: int, stop: threading.Event) -> None:
        self._wanted = stage
        self._left = after
        self._stop = stop

    @contextlib.contextmanager
    def stage(self, name: str, total: int, unit: str, done: int = 0, **_: object) -> Iterator[StopAfter]:
        self._counting = name == self._wanted
        yield self

    def advance(self, amount: int, effort: float | None = None) -> None:
        self._left -= amount if self._counting else 0
        if self._left <= 0:
            self._stop.set()

    def tick(self) -> None:
        pass

    def note(self, message: str) -> None:
        pass


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> bool:
    """Wait for a condition; return False if the process ends before it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError("the process neither ended nor came so far")
        time.sleep(0.005)
    return True


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture(scope="module")
def module_shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def until() -> Callable[..., bool]:
    return wait_until


def quick(shop: Workshop, run: str, **sections: Any) -> dict[str, Any]:
    """A run of 10 tiles in each of two layers, which takes a moment."""
    layers = {"a": shop.features("a.npy", (28, 6, 4)), "b": shop.features("b.npy", (28, 4, 3), seed=1)}
    return shop.of_features(
        run, layers, **({"matching": {"tile": 7}, "output": {"matrices": "stored"}} | sections)
    )


def trees(shop: Workshop, run: str) -> dict[str, Any]:
    """What a run has on disk, by group."""
    return {group: shop.tree(shop.path / run / group) for group in GROUPS}


@pytest.fixture(scope="module")
def quick_whole(module_shop: Workshop) -> dict[str, Any]:
    """What an uninterrupted quick run has on disk."""
    module_shop.run(quick(module_shop, "quick"))
    return trees(module_shop, "quick")
