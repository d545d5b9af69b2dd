"""Which models there are and what their names mean: `arch` or `arch.tag`, as in timm.

A name without a tag says which architecture, not which weights: timm would pick a default, and the
default changes between releases. So pretrained weights are asked for with the tag.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm

from semrsm_dist.errors import ConfigError, InputError, did_you_mean

SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
_SHIPPED_SUFFIX = ".digits.safetensors"

CLIPSEG = {
    "CIDAS/clipseg-rd16": 352,
    "CIDAS/clipseg-rd64": 352,
    "CIDAS/clipseg-rd64-refined": 352,
    "test_clipseg": 64,
}
"""Names of the networks that come from transformers, with the side of their images in pixels.

The name is that of the repository on the hub; `test_clipseg` is a tiny one without trained weights.
"""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of the list of models.

    Attributes
    ----------
    name
        What to write as the model's name: ``arch.tag`` where weights can be downloaded, else ``arch``.
    weights
        "digits" (shipped with the package), "pretrained" (downloaded by timm) or "random" (no weights known).
    input_size
        Height and width that the model was made for, in pixels.
    """

    name: str
    weights: str
    input_size: tuple[int, int]


@functools.cache
def architectures() -> frozenset[str]:
    """Return the names of timm's architectures, without those it only keeps as aliases."""
    return frozenset(timm.list_models())


@functools.cache
def tagged_names() -> frozenset[str]:
    """Return all names ``arch.tag`` for which timm knows pretrained weights."""
    return frozenset(name for name in timm.list_pretrained() if "." in name)


def tags_of(arch: str) -> list[str]:
    """Return the names ``arch.tag`` of one architecture, sorted."""
    return sorted(name for name in tagged_names() if name.split(".", 1)[0] == arch)


def shipped_architectures() -> dict[str, Path]:
    """Return architecture -> file for the weights that come with the package."""
    files = sorted(SHIPPED_WEIGHTS.glob(f"*{_SHIPPED_SUFFIX}"))
    return {file.name.removesuffix(_SHIPPED_SUFFIX): file for file in files}


def read_shipped_metadata(arch: str) -> dict[str, Any]:
    """Return what is written in the head of a shipped weight file.

    Keys: see `read_description`.

    Raises
    ------
    ConfigError
        No weights are shipped for this architecture.
    """
    description = read_description(find_shipped(arch), arch)
    if description is None:
        raise InputError(f"{find_shipped(arch)}: says nothing of its network; install the package anew")
    return description


def find_shipped(arch: str) -> Path:
    """Return the file of the weights that are shipped for an architecture.

    Raises
    ------
    ConfigError
        There is none.
    """
    shipped = shipped_architectures()
    if arch not in shipped:
        raise ConfigError(
            f"no digits weights are shipped for model {arch!r}; they are for: {', '.join(shipped) or 'none'}"
        )
    return shipped[arch]


def read_description(path: Path, arch: str) -> dict[str, Any] | None:
    """Return what the head of a weight file says of the network; None if it says nothing, as most files do.

    Keys: architecture, model_kwargs, num_classes, input_size (H, W), mean, std, interpolation, classes, and outputs:
    `classes` where the network names one of them, `labels` where it says yes or no to each.

    Raises
    ------
    InputError
        The file describes another architecture.
    """
    meta = {key: _from_json(value) for key, value in read_head(path).items()}
    if not {"architecture", "input_size", "num_classes"} <= meta.keys():
        return None
    if meta["architecture"] != arch:
        raise InputError(
            f"{path}: made for {meta['architecture']!r}, not for {arch!r}; give the model's right name"
        )
    size = meta["input_size"]
    meta["input_size"] = (size, size) if isinstance(size, int) else tuple(size[-2:])
    return meta


def read_head(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other formats and for what is none."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return {}  # whoever reads the tensors says what is wrong


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a plain word


def split_name(name: str) -> tuple[str, str]:
    """Split ``arch.tag`` into architecture and tag ("" if there is none), refusing unknown ones.

    Raises
    ------
    ConfigError
        The architecture or the tag does not exist in the installed timm.
    """
    if name in CLIPSEG:
        return name, ""
    arch, _, tag = name.partition(".")
    if arch not in architectures():
        hint = did_you_mean(name, architectures() | set(CLIPSEG) | (tagged_names() if tag else frozenset()))
        raise ConfigError(
            f"unknown model {name!r}{hint or '.'} List what there is with: semrsm models 'PATTERN*'"
            + (
                " (for a local file, name its architecture and give the path as weights)"
                if "/" in name
                else ""
            )
        )
    if tag and not pretrained_cfg(name):
        raise ConfigError(f"model {arch!r} has no pretrained weights tagged {tag!r}; {_offer_tags(arch)}")
    return arch, tag


def require_tag(name: str) -> None:
    """Refuse a name that leaves open which pretrained weights are meant.

    Raises
    ------
    ConfigError
        `name` has no tag, or timm knows the tag but nowhere to download it from.
    """
    arch, tag = split_name(name)
    if tag and name in tagged_names():
        return
    problem = "has no weights that timm could download" if tag else "leaves open which pretrained weights"
    raise ConfigError(f"model {name!r} {problem}; {_offer_tags(arch)}")


def _offer_tags(arch: str) -> str:
    names = tags_of(arch)
    if names:
        return f"there are: {', '.join(names)}"
    return (
        f"timm has none for {arch!r}: give the path of a file as weights, or ask for weights: random "
        f"(shipped with the package: {', '.join(shipped_architectures()) or 'none'}, as weights: digits)"
    )


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's configuration of a model's weights, preprocessing and head; empty for an unknown tag."""
    if name in CLIPSEG:
        side = CLIPSEG[name]
        return {"input_size": (3, side, side)} | ({"hf_hub_id": name} if "/" in name else {})
    try:
        cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # how timm reports a tag it does not know
        return {}
    return dict(cfg.to_dict()) if cfg is not None else {}


def list_models(pattern: str = "*", *, weights: str | None = None) -> list[ModelRow]:
    """List the models whose name matches a glob pattern, from timm's registry and `CLIPSEG` alone.

    Parameters
    ----------
    pattern
        Glob over ``arch`` and ``arch.tag``; a plain architecture lists all its tags.
    weights
        Keep only rows with these weights: "digits", "pretrained" or "random".

    Returns
    -------
    Rows sorted by name, the shipped ones first.
    """
    names = timm.list_models(pattern, include_tags=True)
    rows = [
        ModelRow(arch, "digits", read_shipped_metadata(arch)["input_size"])
        for arch in shipped_architectures()
        if any(name.split(".", 1)[0] == arch for name in names)
    ]
    rows += [
        ModelRow(name, "pretrained" if name in tagged_names() else "random", _own_size(name))
        for name in names
    ]
    rows += [
        ModelRow(name, "pretrained" if "/" in name else "random", (side, side))
        for name, side in CLIPSEG.items()
        if fnmatch.fnmatch(name, pattern)
    ]
    return [row for row in rows if weights in (None, row.weights)]


def _own_size(name: str) -> tuple[int, int]:
    height, width = pretrained_cfg(name).get("input_size", (3, 224, 224))[-2:]
    return int(height), int(width)
