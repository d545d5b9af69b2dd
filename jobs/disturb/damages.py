"""Faults of files: of any file of a run, between sessions and while one works."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from disturb.scene import FEATURES, TILES, Fault, Scene

TARGETS = {
    "tile": (TILES,),
    "feature chunk": (FEATURES,),
    "norms or pooled vectors": ("features.zarr/*/*/*/c/*", "features.zarr/*/*/pooled/c/*/0"),
    "coordinate": ("tiles.zarr/*/*/c/0",),
    "array's description": ("*.zarr/*/*/zarr.json", "*.zarr/*/*/*/zarr.json"),
    "group's description": ("*.zarr/zarr.json", "*.zarr/*/zarr.json"),
    "record": ("run.json",),
    "copy of the record": ("run.copy.json",),
    "manifest": ("images.parquet",),
    "summary": ("summary.json",),
    "inventory": ("inventory.parquet",),
    "ledger": ("events.jsonl",),
    "lock": ("lock",),
}
"""The parts of a run, and patterns of their files."""

AT_WORK = ("tile", "feature chunk", "array's description", "group's description", "record", "manifest")
"""Parts that are damaged while a session works, too."""

SWAPPED = ("tile", "feature chunk", "array's description")
"""Parts of which two files are swapped."""


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


def _put_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _put_pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "truncated": _truncate,
    "bit flipped": _flip,
    "zeroed": _zero,
    "deleted": _delete,
    "replaced by a folder": _put_folder,
    "replaced by a pipe": _put_pipe,
}


def _damage(how: Callable[[Path, random.Random], None], patterns: Sequence[str]) -> Callable[[Scene], bool]:
    """Return a fault's `do` that damages a random file."""

    def do(scene: Scene) -> bool:
        path = scene.pick(*patterns)
        if path is None:
            return False
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # the session was faster
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


def _swap(patterns: Sequence[str]) -> Callable[[Scene], bool]:
    """Return a fault's `do` that exchanges two files of the same kind."""

    def do(scene: Scene) -> bool:
        paths = scene.find(*patterns)
        if len(paths) < 2:
            return False
        one, other = scene.rng.sample(paths, 2)
        try:
            contents = one.read_bytes(), other.read_bytes()
        except FileNotFoundError:  # the session was faster
            return False
        for path, content in zip((other, one), contents, strict=True):
            path.write_bytes(content)
        scene.damaged |= {each for path in (one, other) for each in (path, *_of_same_chunk(path))}
        return True

    return do


def _take_foreign(scene: Scene) -> bool:
    """Put the tile of another run in the place of one."""
    path = scene.pick(TILES)
    other = scene.run.parents[1] / "foreign"
    tiles = sorted(other.glob(TILES))
    if path is None or not tiles:
        return False
    shutil.copyfile(scene.rng.choice(tiles), path)
    scene.damaged.add(path)
    return True


def _leave_strays(scene: Scene) -> bool:
    """Leave what a killed writer leaves, of a chunk and of a small file."""
    beside = scene.pick(TILES, FEATURES)
    if beside is None:
        return False
    beside.with_name(f"{beside.name}.0123abcd.partial").write_bytes(b"half")
    (scene.run / "run.json.tmp99").write_text("{")
    return True


def _list_faults() -> Iterator[Fault]:
    for target, patterns in TARGETS.items():
        ways = {how: _damage(damage, patterns) for how, damage in DAMAGES.items()}
        if target in SWAPPED:
            ways["swapped with another"] = _swap(patterns)
        for how, do in ways.items():
            yield Fault(f"{target}: {how}", "before", do)
            if target in AT_WORK:
                yield Fault(f"{target}, while at work: {how}", "during", do)
    yield Fault("tile: of another run", "before", _take_foreign)
    yield Fault("stray partial files", "before", _leave_strays)


FAULTS = tuple(_list_faults())
