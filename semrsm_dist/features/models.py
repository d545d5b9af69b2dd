"""A vision model ready to read representations from: architecture, weights, preprocessing, identity.

Any architecture of timm, and CLIPSeg. The weights are always those requested: downloaded under an explicit tag,
shipped with the package, from a local file, or random when the configuration says "random".
"""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.imagenet_info import infer_imagenet_subset
from timm.data.transforms_factory import create_transform
from torch import nn

from semrsm_dist.errors import ConfigError, InputError, first_line
from semrsm_dist.features import checkpoints, clipseg, hub, registry
from semrsm_dist.features.spec import ModelSpec

__all__ = ["LoadedModel", "ModelSpec", "load_model"]

Size: TypeAlias = tuple[int, int]
Transform: TypeAlias = Callable[[Image.Image], torch.Tensor]

FRAMINGS: Mapping[str, Mapping[str, Any]] = {
    "crop": {"crop_mode": "center"},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0},
    "pad": {"crop_mode": "border", "crop_pct": 1.0},
}
"""What the words of `ModelSpec.preprocessing` mean in timm; the latter two lose nothing of an image."""

IN_MEMORY = "in memory"
"""In place of the weights' origin, for a module that was not loaded here."""

_BUILDING = threading.Lock()
NETWORK_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError)
"""Errors that networks raise, built for or run at sizes that they are not made for."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on the CPU, with its preprocessing and its identity."""

    module: nn.Module
    """The timm model; no gradients."""
    spec: ModelSpec
    """The requested model."""
    data_config: dict[str, Any]
    """timm's resolved preprocessing: input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode."""
    transform: Transform
    """PIL image -> float32 tensor (3, H, W)."""
    weights_sha256: str
    """Hash of the weights, the same for the same numbers from any file format."""
    n_prefix_tokens: int
    """Tokens without a position (class token, registers) before the patch tokens."""
    classes: tuple[str, ...] | None
    """Names of the classifier's outputs, where known."""
    outputs: str | None = None
    """What the head's outputs mean: "classes" if it names one of them (softmax), "labels" if it says yes or no to each
    (sigmoid), None if there is no head or nothing says that they are classes."""
    prompt_tokens: tuple[int, ...] = ()
    """The prompt as the network reads it; empty without one."""
    build_options: Mapping[str, Any] = field(default_factory=dict)
    """How the network differs from timm's of this name, if a weight file describes it."""

    @property
    def architecture(self) -> str:
        """Name of the architecture in timm, without the tag."""
        return str(getattr(self.module, "pretrained_cfg", {}).get("architecture", self.spec.name))

    @property
    def input_size(self) -> Size:
        """Height and width of the model's input, in pixels."""
        _, height, width = self.data_config["input_size"]
        return int(height), int(width)

    @property
    def n_classes(self) -> int:
        """Number of the classifier's outputs; 0 if there is no classifier."""
        return int(getattr(self.module, "num_classes", 0) or 0)

    def describe(self) -> dict[str, Any]:
        """Return, ready for JSON, everything about the model that a run has to remember."""
        return {
            "name": self.spec.name,
            "architecture": self.architecture,
            "weights": self.spec.weights,
            "seed": self.spec.seed if self.spec.weights == "random" else None,
            "prompt": {"text": self.spec.prompt, "tokens": list(self.prompt_tokens)}
            if self.prompt_tokens
            else None,
            "revision": registry.revision_of(self.spec.name) if self.spec.weights == "pretrained" else None,
            "weights_sha256": self.weights_sha256,
            "n_prefix_tokens": self.n_prefix_tokens,
            "build_options": dict(self.build_options),
            "n_classes": self.n_classes,
            "classes": list(self.classes) if self.classes else None,
            "outputs": self.outputs,
            "data_config": _as_json(self.data_config),
            "pretrained_cfg": _as_json(getattr(self.module, "pretrained_cfg", {})),
            "timm": importlib.metadata.version("timm"),
            "torch": str(torch.__version__),
        }


def load_model(spec: ModelSpec) -> LoadedModel:
    """Build a model with the given weights.

    Raises
    ------
    ConfigError
        The name, its tag or the input size is impossible; the message lists what is possible.
    InputError
        The weights cannot be downloaded or do not belong to this architecture.
    """
    arch, tag = registry.split_name(spec.name)
    size = _checked_size(spec.input_size)
    is_clipseg = spec.name in registry.CLIPSEG
    if spec.prompt is not None and not is_clipseg:
        raise ConfigError(
            f"model {spec.name!r} takes no prompt, only CLIPSeg does ({', '.join(registry.CLIPSEG)}); remove it"
        )
    path = replace(spec, name=arch).weights_file()
    if spec.weights in ("digits", "package") and tag:
        raise ConfigError(
            f"model {spec.name!r} names the weights {tag!r}, but weights: {spec.weights} means others; write {arch!r}"
        )
    with _generator_seeded(spec.seed):
        if is_clipseg:
            module, tokens = clipseg.build(spec.name, path or spec.weights, spec.prompt, size)
            model = replace(_describe(module, spec, size, clipseg.PREPROCESSING), prompt_tokens=tokens)
        elif spec.weights == "pretrained":
            model = _describe(_create_pretrained(spec.name, size), spec, size)
        else:
            model = _load_local(spec, path, registry.read_description(path, arch) if path else {}, size)
    model.module.requires_grad_(False)
    return model


def adopt_module(
    module: nn.Module,
    input_size: int | Size | None = None,
    transform: Transform | None = None,
    preprocessing: str | None = None,
) -> LoadedModel:
    """Return a module that is in memory already, in evaluation mode, as a model to read layers from.

    Raises ConfigError if nothing says how images are preprocessed, or the module cannot work at this input size, or in
    float32.

    Parameters
    ----------
    module
        A module of timm, or any other that takes images (B, 3, H, W).
    input_size
        Height and width in pixels; by default the model's own.
    transform
        Preprocessing of a module that is not of timm: PIL image -> (3, H, W) tensor of the input size.
    preprocessing
        See `ModelSpec`.
    """
    name, size = type(module).__name__, _checked_size(input_size)
    kinds = {(str(each.dtype), each.is_meta) for each in module.parameters() if each.is_floating_point()}
    if kinds and ("torch.float32", False) not in kinds:
        found = "on the device 'meta', without numbers" if (*kinds,)[0][1] else f"of {(*kinds,)[0][0]}"
        raise ConfigError(
            f"model: the parameters of the module {name} are {found}, but images come in float32: give module.float(), "
            "with its weights; what it then computes in is precision"
        )
    if transform is None and not getattr(module, "pretrained_cfg", None):
        raise ConfigError(
            f"model: the module {name} does not say how images are preprocessed, as those of timm do: give transform, "
            "a function from a PIL image to a (3, H, W) tensor, such as the one of its weights in torchvision"
        )
    if transform is None:
        built_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
        size = size or _checked_size(built_for)
    else:
        for key, value in {"input_size": size, "preprocessing": preprocessing}.items():
            if value is not None:
                raise ConfigError(f"{key}: transform already determines it; give one of the two")
        made: Any = transform(Image.new("RGB", (256, 256)))
        shape, kind = tuple(getattr(made, "shape", ())), getattr(made, "dtype", None)
        if not isinstance(made, torch.Tensor) or kind != torch.float32 or len(shape) != 3 or shape[0] != 3:
            raise ConfigError(
                f"transform: expected a float32 tensor of shape (3, H, W), got {type(made).__name__} {kind} {shape}"
            )
        size = (shape[1], shape[2])
    spec = ModelSpec(name, IN_MEMORY, size, preprocessing=preprocessing)
    model = _describe(module, spec, size, {"crop_pct": 1.0} if transform else None)
    return model if transform is None else replace(model, transform=transform)


@contextmanager
def _generator_seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for this block and restore it after; one thread at a time.

    The generator is one for the whole process: two models built at once would draw from each other's numbers.
    """
    with _BUILDING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _load_local(
    spec: ModelSpec, path: Path | None, meta: Mapping[str, Any], size: Size | None
) -> LoadedModel:
    """Build a network with random weights or those of a file, as the file describes it if it does."""
    own: Size = meta["input_size"] if meta else registry.own_size(spec.name)
    size = size or own
    options = dict(meta.get("model_kwargs") or {})
    changes: dict[str, Any] = {}
    if meta:
        changes = {"crop_pct": 1.0} | {k: meta[k] for k in ("mean", "std", "interpolation") if k in meta}
        module = _create(spec.name, size, **{**options, "num_classes": int(meta["num_classes"])})
    else:
        module = _create(spec.name, size)
    if path:
        checkpoints.load_file(module, path, own, size, is_stated=bool(meta))
    model = _describe(module, spec, size, changes)
    return replace(
        model,
        classes=tuple(map(str, meta.get("classes") or ())) or model.classes,
        outputs=meta.get("outputs") or model.outputs,
        build_options=options,
    )


def _describe(
    module: nn.Module, spec: ModelSpec, size: Size | None, preprocessing: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Put a module into evaluation mode and find out its preprocessing, its tokens and its classes."""
    module.eval()
    cfg = getattr(module, "pretrained_cfg", {})
    cfg = cfg if isinstance(cfg, dict) else {}
    own = tuple(cfg.get("input_size", (3, 224, 224)))
    if own[0] != 3:
        raise ConfigError(f"model {spec.name!r} takes {own[0]} input channels; only RGB models can be used")
    wanted = size or (int(own[1]), int(own[2]))
    resolve: Any = resolve_data_config
    framing = FRAMINGS[spec.preprocessing] if spec.preprocessing else {}
    config = resolve({"input_size": (3, *wanted), **(preprocessing or {}), **framing}, model=module)
    if wanted != own[-2:]:
        _try_size(module, spec.name, wanted)
    labels = cfg.get("label_names") or ()
    known = 0 < len(labels) == getattr(module, "num_classes", 0)
    return LoadedModel(
        module=module,
        spec=spec,
        data_config=config,
        transform=create_transform(**config, is_training=False),
        weights_sha256=checkpoints.hash_state(module),
        n_prefix_tokens=_count_prefix_tokens(module),
        classes=tuple(map(str, labels)) if known else None,
        outputs=_meaning_of_outputs(module, has_names=known),
    )


def _count_prefix_tokens(module: nn.Module) -> int:
    declared = getattr(module, "num_prefix_tokens", None)
    if declared is None:  # cait, convit and xcit before timm 1.0.31, pit and volo still
        return int(getattr(module, "cls_token", None) is not None)
    return int(declared)


def _meaning_of_outputs(module: nn.Module, *, has_names: bool) -> str | None:
    """Return `classes` for a head whose classes timm knows, by name or as a label set of ImageNet.

    Other heads may be embeddings, as those of CLIP are, which no probability is made of.
    """
    n_outputs = int(getattr(module, "num_classes", 0) or 0)
    known = n_outputs and (has_names or infer_imagenet_subset({"num_classes": n_outputs}) is not None)
    return "classes" if known else None


def _create(name: str, size: Size, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    cfg, own = registry.pretrained_cfg(name), registry.own_size(name)
    if size != own and cfg.get("fixed_input_size", False):
        # Position embeddings and windows are made for one size; other models take any and know no img_size.
        kwargs["img_size"] = size
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (*NETWORK_ERRORS, pickle.UnpicklingError) as error:
        if "img_size" in kwargs:
            raise _size_error(name, size, error) from error
        if pretrained:
            raise InputError(
                f"the weights of {name!r} in the hub cannot be read ({first_line(error)}), and nothing but tensors is "
                "loaded, since pickled objects may execute code; choose another model, or give its weights as a "
                ".safetensors file (--set model.weights=PATH)"
            ) from error
        raise
    return module


def _create_pretrained(name: str, size: Size | None) -> nn.Module:
    registry.require_tag(name)
    cfg, own = registry.pretrained_cfg(name), registry.own_size(name)
    size = size or own
    reshaped = cfg.get("fixed_input_size", False) and size != own and size[0] * size[1] == own[0] * own[1]
    with hub.downloading(name, cfg):
        module = _create(name, own if reshaped else size, pretrained=True)
    if not reshaped:
        return module
    # Some releases of timm leave position embeddings as they are where their number is right and their grid is not.
    other = _create(name, size)
    state = checkpoints.move_positions(other, module.state_dict(), own, size, name, is_stated=True)
    checkpoints.load_state(other, state, source=name)
    return other


def _checked_size(size: int | Size | None) -> Size | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(
            f"input_size must be one or two positive whole numbers (height, width), not {size!r}"
        )
    return pair[0], pair[1]


def _try_size(module: nn.Module, name: str, size: Size) -> None:
    """Find out now, with one blank image, whether the network can work at this size."""
    patch = _patch_size(module)
    if patch and any(side % step for side, step in zip(size, patch, strict=True)):
        nearest = [max(1, round(side / step)) * step for side, step in zip(size, patch, strict=True)]
        raise ConfigError(
            f"input_size {size[0]} x {size[1]} is no multiple of the {patch[0]} x {patch[1]} patches of {name!r}, "
            f"so pixels would be cut off; the nearest is {' x '.join(map(str, nearest))}"
        )
    forward: Any = getattr(module, "forward_features", module)
    try:
        with torch.inference_mode():
            forward(torch.zeros(1, 3, *size))
    except NETWORK_ERRORS as error:
        raise _size_error(name, size, error) from error


def _patch_size(module: nn.Module) -> Size | None:
    """Return the side lengths of patches that neither overlap nor are padded, if the network has such."""
    if isinstance(module, clipseg.ClipSeg):
        return module.patch, module.patch
    embed = getattr(module, "patch_embed", None)
    conv = getattr(embed, "proj", None)
    if not isinstance(conv, nn.Conv2d) or getattr(embed, "dynamic_img_pad", False):
        return None
    height, width = conv.kernel_size
    return (height, width) if tuple(conv.stride) == (height, width) and conv.padding in (0, (0, 0)) else None


def _size_error(name: str, size: tuple[int, ...], error: Exception) -> ConfigError:
    own = registry.own_size(name)
    return ConfigError(
        f"model {name!r} cannot work at input_size {' x '.join(map(str, size))} ({first_line(error)}); "
        f"leave input_size out for its own {own[0]} x {own[1]}, or try a multiple of 32"
    )


def _as_json(facts: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps({k: v for k, v in facts.items() if k != "state_dict"}, default=str))
