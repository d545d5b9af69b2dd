"""Which models there are and what their names mean: `arch`, `arch.tag` or `hf-hub:owner/name`, as in timm.

A name without a tag says which architecture, not which weights: timm would pick a default, and the
default changes between releases. So pretrained weights need the tag.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import timm

from semrsm_dist.errors import ConfigError, InputError, did_you_mean
from semrsm_dist.features import hub
from semrsm_dist.features.packaged import PACKAGES
from semrsm_dist.features.spec import shipped_architectures

HUB = "hf-hub:"
"""What precedes the name of a repository of the Hugging Face hub, as in timm."""

CLIPSEG = {
    "CIDAS/clipseg-rd16": 352,
    "CIDAS/clipseg-rd64": 352,
    "CIDAS/clipseg-rd64-refined": 352,
    "test_clipseg": 64,
}
"""Names of the networks that come from transformers, with the side of their images in pixels.

The name is that of the repository on the hub; `test_clipseg` is a tiny one without trained weights.
"""

_REVISIONS = {"CIDAS/clipseg-rd64-refined": "999e0328d9e10b484360c477313983f9afdd7050"}
"""Commits that downloads are pinned to; of the others, the record of a run says that they are not."""

_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}


class ModelRow(NamedTuple):
    """A model in the list: its name in configurations, whence its weights come, and height and width in pixels."""

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


def read_description(path: Path, arch: str) -> dict[str, Any]:
    """Return the description of the network in the head of a weight file; empty if there is none, as in most files.

    Keys: architecture, model_kwargs, num_classes, input_size (H, W), mean, std, interpolation, classes, and outputs:
    `classes` (one of them is true) or `labels` (each is true or false). Raises InputError if the file describes another
    architecture.
    """
    meta = {key: _from_json(value) for key, value in read_head(path).items()}
    if not {"architecture", "input_size", "num_classes"} <= meta.keys():
        return {}
    if meta["architecture"] != arch:
        raise InputError(
            f"{path}: these are weights of {meta['architecture']!r}, not of {arch!r}; correct the model's name"
        )
    size = meta["input_size"]
    meta["input_size"] = (size, size) if isinstance(size, int) else tuple(size[-2:])
    return meta


def read_head(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for other formats and damaged files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return {}  # reading the tensors reports what is wrong


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a plain word


def split_name(name: str) -> tuple[str, str]:
    """Split ``arch.tag`` into architecture and tag ("" if there is none), refusing unknown ones.

    For a model of the hub, the architecture is what its repository says.

    Raises
    ------
    ConfigError
        The architecture or the tag does not exist in the installed timm.
    InputError
        The description of a model of the hub cannot be downloaded.
    """
    if name in CLIPSEG:
        return name, ""
    if name.startswith(HUB):
        return read_hub(name)[1], ""
    arch, _, tag = name.partition(".")
    if arch not in architectures():
        raise ConfigError(f"unknown model {name!r}{_suggest(name)} List all with: semrsm models 'PATTERN*'")
    if tag and not pretrained_cfg(name):
        raise ConfigError(f"model {arch!r} has no pretrained weights tagged {tag!r}; {_offer_tags(arch)}")
    return arch, tag


def _suggest(name: str) -> str:
    """Return what an unknown name probably means."""
    if "/" in name and not (hint := did_you_mean(name, CLIPSEG)):
        return (
            f"; for a model of the Hugging Face hub write {HUB}{name}, and for a local file give its architecture as "
            "name and its path as weights."
        )
    if "/" in name:
        return hint
    # Other projects put the parts of a name into another order and say b14 for base_patch14.
    vit = r"vit[_-]?(tiny|small|base|large|huge|giant|[tsblhg])[_-]?(\d+)"
    spelt = re.sub(vit, lambda m: f"vit_{_SIZES.get(m[1], m[1])}_patch{m[2]}", name.lower())
    parts = set(re.split("[-_.]", spelt))
    known = architectures() | tagged_names()
    shared = {other: len(parts.intersection(re.split("[_.]", other))) for other in known}
    if (most := max(shared.values())) >= 3:
        alike = sorted(
            (other for other in known if shared[other] == most), key=lambda other: (len(other), other)
        )
        return f"; did you mean {' or '.join(map(repr, alike[:3]))}?"
    return did_you_mean(name, known if "." in name else architectures() | set(CLIPSEG)) or "."


@functools.cache
def read_hub(name: str) -> tuple[dict[str, Any], str]:
    """Return timm's configuration and the architecture of a model ``hf-hub:owner/name[@revision]``.

    Raises
    ------
    ConfigError
        The name is not of this form, or the repository holds no model of the installed timm.
    InputError
        Its description cannot be downloaded.
    """
    repository = name.removeprefix(HUB)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", repository):
        raise ConfigError(f"model {name!r}: expected {HUB}owner/name or {HUB}owner/name@revision")
    try:
        with hub.downloading(name, {"hf_hub_id": repository}, ("config.json",)):
            cfg, arch, _ = timm.models.load_model_config_from_hf(repository)
    except InputError:
        raise
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"model {name!r}: the repository holds no model of timm ({type(error).__name__}: {error}); "
            "choose one that says so, or give the name of an architecture and the path of a file as weights"
        ) from error
    if arch not in architectures():
        raise ConfigError(
            f"model {name!r} is of the architecture {arch!r}, which timm {timm.__version__} lacks"
        )
    return dict(cfg), str(arch)


def require_tag(name: str) -> None:
    """Refuse a name that leaves open which pretrained weights are meant.

    Raises ConfigError if `name` has no tag, or timm knows the tag but nowhere to download it from.
    """
    arch, tag = split_name(name)
    if name.startswith(HUB) or (tag and name in tagged_names()):
        return
    problem = "has no weights that timm could download" if tag else "does not say which pretrained weights"
    raise ConfigError(f"model {name!r} {problem}; {_offer_tags(arch)}")


def _offer_tags(arch: str) -> str:
    names = sorted(name for name in tagged_names() if name.split(".", 1)[0] == arch)
    if names:
        return f"choose one of {', '.join(names)}"
    return (
        f"timm has none for {arch!r}: give the path of a file as weights, or set weights: random, or weights: digits "
        f"with one of the models whose weights ship ({', '.join(shipped_architectures())})"
    )


def revision_of(name: str) -> str | None:
    """Return the revision of the repository that a model's name means; None for models that timm itself lists."""
    if name.startswith(HUB):
        return name.partition("@")[2] or "main (not pinned)"
    return _REVISIONS.get(name, "main (not pinned)") if name in CLIPSEG and "/" in name else None


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's configuration of a model's weights, preprocessing and head; empty for an unknown tag."""
    if name in CLIPSEG:
        side = CLIPSEG[name]
        repository = f"{name}@{_REVISIONS.get(name, 'main')}"
        return {"input_size": (3, side, side)} | ({"hf_hub_id": repository} if "/" in name else {})
    if name.startswith(HUB):
        return read_hub(name)[0]
    try:
        cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # how timm reports a tag it does not know
        return {}
    return dict(cfg.to_dict()) if cfg is not None else {}


def list_models(pattern: str = "*", *, weights: str | None = None) -> list[ModelRow]:
    """List the models whose name matches a glob pattern, from timm's registry and `CLIPSEG` alone.

    The pattern is for ``arch`` and ``arch.tag``; a plain architecture lists all its tags. Rows are sorted by name, the
    shipped ones first. The name is the one to use in configurations: ``arch.tag`` if weights can be downloaded, else
    ``arch``. Weights are "digits" (shipped with this package), "package" (to be installed for them), "pretrained"
    (downloaded by timm) or "random" (no weights known); if they are given, only rows with these are listed.
    """
    names = timm.list_models(pattern, include_tags=True)
    rows = [
        ModelRow(arch, "digits", read_description(path, arch).get("input_size") or own_size(arch))
        for arch, path in shipped_architectures().items()
        if any(name.split(".", 1)[0] == arch for name in names)
    ]
    rows += [ModelRow(arch, "package", own_size(arch)) for arch in PACKAGES if fnmatch.fnmatch(arch, pattern)]
    rows += [
        ModelRow(name, "pretrained" if name in tagged_names() else "random", own_size(name)) for name in names
    ]
    rows += [
        ModelRow(name, "pretrained" if "/" in name else "random", (side, side))
        for name, side in CLIPSEG.items()
        if fnmatch.fnmatch(name, pattern)
    ]
    return [row for row in rows if weights in (None, row.weights)]


def own_size(name: str) -> tuple[int, int]:
    """Return the height and width, in pixels, that a model was made for."""
    height, width = pretrained_cfg(name).get("input_size", (3, 224, 224))[-2:]
    return int(height), int(width)
