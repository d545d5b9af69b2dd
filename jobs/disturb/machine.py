"""Faults of the machine: of its disks, and of what a program's output goes to."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disturb.scene import FEATURES, TILES, Fault, Scene, stamps

LARGEST_FILE = 1500
"""Bytes of the largest file in a session with such a limit: fewer than a chunk of features has, more than a tile."""


def _fail_in_folder(pattern: str) -> Callable[[Scene], bool]:
    """Return a fault's `do` by which access to one of the run's folders fails, for a moment or until the end."""

    def do(scene: Scene) -> bool:
        file = scene.pick(pattern)
        if file is None:
            return False
        folder, aside = file.parent, scene.run.parent / "aside"
        folder.rename(aside)
        folder.symlink_to(folder.name)  # a loop: ELOOP for everyone who opens it

        def undo() -> None:
            if folder.is_symlink():
                folder.unlink()
                aside.rename(folder)

        if scene.rng.random() < 0.5:
            time.sleep(scene.rng.uniform(0.05, 0.5))
            undo()
        scene.undo.append(undo)
        return True

    return do


def _forbid_writing(scene: Scene) -> bool:
    """Take away the permission to write into the run's tiles."""
    root = scene.run / "tiles.zarr"
    if not root.exists():
        return False
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    if os.geteuid() == 0:  # permissions do not stop root

        def switch(flag: str) -> None:
            subprocess.run(["chattr", flag, *map(str, folders)], check=False, capture_output=True)

        switch("+i")
        scene.undo.append(lambda: switch("-i"))
    else:
        for each in folders:
            each.chmod(0o555)
        scene.undo.append(lambda: [each.chmod(0o755) for each in folders])
    return True


def _fill_disk(scene: Scene) -> bool:
    """Give the run a disk of its own that is full but for some KiB."""
    if os.geteuid() != 0 or not scene.run.exists():
        return False
    copy = scene.run.with_name("copy")
    _copy(scene.run, copy)
    if not _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", scene.run):
        shutil.rmtree(copy)
        return False
    _copy(copy, scene.run)
    used = sum(-(-path.stat().st_size // 4096) for path in scene.run.rglob("*")) + 4
    _mount("-o", f"remount,size={4 * (used + scene.rng.randrange(60))}k", scene.run)

    def undo() -> None:
        shutil.rmtree(copy)
        _copy(scene.run, copy)
        subprocess.run(["umount", "--lazy", str(scene.run)], check=True)
        shutil.rmtree(scene.run)
        copy.rename(scene.run)

    scene.undo.append(undo)
    scene.damaged |= set(stamps(scene.run))  # it is copied, and back: inodes say nothing
    return True


def _copy(folder: Path, target: Path) -> None:
    """Copy a folder with all that is in it, pipes too."""
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", f"{folder}/.", str(target)], check=True)


def _mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def _limit_files(scene: Scene) -> dict[str, Any]:
    """Let no file grow large."""
    limits = (LARGEST_FILE, resource.RLIM_INFINITY)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return {"preexec_fn": limit}


def _close(stream: str) -> Callable[[Scene], dict[str, Any]]:
    """Return a fault's `do` by which nobody reads a stream of the process."""

    def do(scene: Scene) -> dict[str, Any]:
        reader, writer = os.pipe()
        os.close(reader)
        scene.undo.append(lambda: os.close(writer))
        return {stream: writer}

    return do


FAULTS = (
    Fault("storage error on reading features", "during", _fail_in_folder(FEATURES)),
    Fault("storage error on writing tiles", "during", _fail_in_folder(TILES)),
    Fault("full disk", "before", _fill_disk, ("local", "ray")),
    Fault("no permission to write", "during", _forbid_writing),
    Fault("limit on the size of files", "launch", _limit_files, ("local",)),
    Fault("closed standard output", "launch", _close("stdout")),
    Fault("closed standard error", "launch", _close("stderr")),
)
