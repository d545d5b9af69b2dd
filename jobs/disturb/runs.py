"""The runs that are disturbed, and what their files must be in the end."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

SHARES = {"features": 3, "digits": 1}
"""What runs are made of, and how often; images load PyTorch."""

GROUPS = ("features.zarr", "tiles.zarr")


def make_documents(folder: Path) -> dict[str, dict[str, Any]]:
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
            "data": {"source": "digits", "n_images": 160},
            "model": {
                "name": "test_resnet",
                "weights": "digits",
                "layers": ["layer3", "layer4"],
            },
            "matching": {"tile": 16, "task_seconds": 0.5},
        },
    }


def hash_results(run: Path) -> dict[str, str]:
    """Return the hash of every file of a run's features, tiles and manifest, but of those that were moved aside."""
    files = [run / "images.parquet", *(path for group in GROUPS for path in (run / group).rglob("*"))]
    names = {path.relative_to(run).as_posix(): path for path in files if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if ".aside-" not in name
    }
