"""The run that experiments judge unless another is given: scenes of handwritten digits, all of it in the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DIGITS: Mapping[str, Any] = {
    "run": "runs/digits",
    "data": {
        "source": "digits",
        "n_images": 400,
        "digits": [1, 4],
        "canvas": 96,
        "scale": [2.5, 4.0],
        "overlap": 0.1,
        "split": "evaluation",
    },
    "model": {
        "name": "test_resnet",
        "weights": "digits",
        "layers": ["layer1", "layer2", "layer3", "layer4"],
    },
    "matching": {"matcher": "auction", "tolerance": 1e-3},
    "kernels": ["cosine", "linear", "rbf"],
}
"""The configuration of the quick start, `jobs/digits.yaml`, so that both share one run."""
