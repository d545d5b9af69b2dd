"""Which model a run uses: its name, the origin of its weights and its precision. No torch here, and no timm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from semrsm_dist.data.opening import require_input
from semrsm_dist.errors import ConfigError, InputError, MissingInputError, did_you_mean
from semrsm_dist.features.packaged import find_packaged

WEIGHTS = ("pretrained", "random", "digits", "package")
"""Words for the origin of weights; anything else is the path of a file."""

PRECISIONS = ("float32", "float16", "bfloat16")
SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
_SHIPPED_SUFFIX = ".digits.safetensors"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, before anything is loaded. Small and picklable."""

    name: str
    """timm's ``arch.tag``, ``arch`` if no pretrained weights are wanted, or ``hf-hub:owner/name``."""
    weights: str = "pretrained"
    """Either "pretrained" (downloaded by timm), "random", "digits" (shipped with this package), "package" (in a package
    that is installed for them), or the path of a file."""
    input_size: int | tuple[int, int] | None = None
    """Height and width in pixels, one number for a square; None takes the model's own."""
    seed: int = 0
    """For random weights."""
    prompt: str | None = None
    """For CLIPSeg: adds the decoder, which sees the image in the light of this text."""
    preprocessing: str | None = None
    """How an image becomes one of the input size: "crop" (its centre), "squash" (all of it, its aspect ratio changed),
    "pad" (all of it, with borders of the mean colour); None takes the model's own, mostly "crop"."""

    def weights_file(self) -> Path | None:
        """Return the file that holds the weights; None for downloaded and for random ones.

        Raises
        ------
        ConfigError
            No weights are shipped or packaged for this model.
        InputError
            There is no such file, or the package is not installed.
        """
        if self.weights in ("pretrained", "random"):
            return None
        if self.weights == "digits":
            return find_shipped(self.name)
        if self.weights == "package":
            return find_packaged(self.name)
        path = weights_path(self.weights)
        try:
            require_input(path)
        except MissingInputError as error:
            raise MissingInputError(
                f"weights: there is no file {path}; check the path, or use one of the words {', '.join(WEIGHTS[:-1])} "
                f"and {WEIGHTS[-1]}{did_you_mean(self.weights, WEIGHTS)}"
            ) from error
        except InputError as error:
            raise InputError(f"weights: {error}") from error
        return path


def weights_path(weights: str) -> Path:
    """Return the absolute path that a configuration means by its weights."""
    return Path(os.path.expandvars(weights)).expanduser().absolute()


def shipped_architectures() -> dict[str, Path]:
    """Return architecture -> file for the weights that ship with the package."""
    files = sorted(SHIPPED_WEIGHTS.glob(f"*{_SHIPPED_SUFFIX}"))
    return {file.name.removesuffix(_SHIPPED_SUFFIX): file for file in files}


def find_shipped(arch: str) -> Path:
    """Return the file of the weights that ship for an architecture.

    Raises ConfigError if there is none.
    """
    shipped = shipped_architectures()
    if arch not in shipped:
        raise ConfigError(f"no digits weights ship for model {arch!r}, only for {', '.join(shipped)}")
    return shipped[arch]


def resolve_precision(precision: str, *, gpu: bool) -> str:
    """Return the precision to compute in: "auto" is float16 on a GPU and float32 without one.

    Raises ConfigError if the precision is unknown.
    """
    if precision == "auto":
        return "float16" if gpu else "float32"
    if precision not in PRECISIONS:
        known = ("auto", *PRECISIONS)
        hint = did_you_mean(precision, known)
        raise ConfigError(f"unknown precision {precision!r}{hint or ';'} choose one of {', '.join(known)}")
    return precision
