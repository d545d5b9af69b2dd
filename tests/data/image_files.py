"""Images and tables for the tests of both."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def write_image(path: Path, value: int = 100, size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)
    return path
