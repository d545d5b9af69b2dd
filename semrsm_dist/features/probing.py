"""The outputs of a network's modules, determined by passing blank images through it.

Whether a module's output holds one vector per position cannot be decided from its size alone: attention maps,
windows and channels-last tensors can all look like feature maps. Two facts decide: the grids of timm's own
stages, and which axes grow with the image: rows when it becomes twice as high, columns when twice as wide. Networks
made for one size are built anew for the others, without numbers; where that cannot be either, the grids decide alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from semrsm_dist.features.models import NETWORK_ERRORS, LoadedModel

Grid = tuple[int, int]
Layout = Literal["intermediate", "nchw", "nhwc", "tokens", "class"]
_Shape = tuple[int, ...] | str  # of a tensor; or the type of what is not one
_Grown = tuple[tuple[int, ...], tuple[int, ...]] | None
"""Axes of an output that grow when the image becomes twice as high, and twice as wide; None if that is unknown."""

_PROBE_IMAGES = 2  # not one: position embeddings and lone windows have a first axis of 1 too

CLASS_TOKEN = "@class"
"""Suffix of a layer's name for its class token instead of its positions."""


@dataclass(frozen=True)
class LayerInfo:
    """One layer that can be read."""

    name: str
    """Name of the stage or module in the network."""
    n_tokens: int
    """S, the number of positions, without prefix tokens."""
    n_channels: int
    """C."""
    grid: Grid | None
    """(H, W) with H * W = S. The positions are in row-major order, except in modules (not stages) of networks that
    reorder their tokens inside, such as Hiera: there the order is the network's, the same for all images."""
    kind: Literal["stage", "module"]
    """Either "stage" for timm's own feature stages, "module" for any other module of the network."""
    layout: Layout = "intermediate"
    """How the network returns the layer: "intermediate" through timm's `forward_intermediates`, otherwise the axes of
    the module's output; "class" for the first of its tokens alone."""
    n_prefix: int = 0
    """Tokens in front of the positions, to be dropped ("tokens" only)."""

    @property
    def module(self) -> str:
        """Name of the module that returns the layer."""
        return self.name.removesuffix(CLASS_TOKEN)


def to_positions(output: Tensor, layout: Layout, n_prefix: int = 0) -> Tensor:
    """Copy a layer's output into (B, S, C), positions in row-major order, prefix tokens dropped.

    Of the layout "class" the first token is left, (B, 1, C).
    """
    if layout == "class":
        z = output[:, :1]
    elif layout == "tokens":
        z = output[:, n_prefix:]
    elif layout == "nhwc":
        z = output.flatten(1, 2)
    else:
        z = output.flatten(2).transpose(1, 2)
    return z.clone(memory_format=torch.contiguous_format)


@contextmanager
def hooks(module: nn.Module, readers: Iterable[tuple[str, Callable[[object], None]]]) -> Iterator[None]:
    """For pairs (name, read), call `read` with the output of submodule `name` while the block lasts."""
    with ExitStack() as stack:
        for name, read in readers:
            submodule = module.get_submodule(name)
            stack.enter_context(
                submodule.register_forward_hook(lambda _m, _i, output, read=read: read(output))
            )
        yield


def forward_features(module: nn.Module, batch: Tensor) -> None:
    """Run the trunk of the network: everything before pooling and classifier."""
    run: Any = getattr(module, "forward_features", module)
    run(batch)


def forward_stages(
    module: nn.Module, batch: Tensor, indices: Sequence[int], *, to_the_end: bool = False
) -> list[Tensor]:
    """Return the stages with these indices as (B, C, H, W), prefix tokens removed by the model's own rule."""
    run: Any = module.forward_intermediates
    result = run(
        batch,
        indices=list(indices),
        stop_early=not to_the_end,
        output_fmt="NCHW",
        intermediates_only=not to_the_end,
    )
    return list(result[1] if to_the_end else result)


def stage_names(module: nn.Module) -> list[str]:
    """Return the names of timm's feature stages; a name that occurs again gets the suffix ``#2``, ``#3``."""
    info = getattr(module, "feature_info", None) or []
    names = [str(entry["module"]) for entry in getattr(info, "info", info)]
    earlier = [names[:index].count(name) for index, name in enumerate(names)]
    return [f"{name}#{count + 1}" if count else name for name, count in zip(names, earlier, strict=True)]


def describe_stages(model: LoadedModel) -> list[LayerInfo]:
    """Return timm's feature stages of the model, measured on a blank image."""
    names = stage_names(model.module)
    if not names:
        return []
    if not hasattr(model.module, "forward_intermediates"):
        modules = readable(survey_modules(model, []))
        return [replace(modules[name], kind="stage") for name in names if name in modules]
    with torch.inference_mode():
        maps = forward_stages(model.module, blank_images(model.module, model.input_size), range(len(names)))
    shapes = [stage.shape[1:] for stage in maps]
    return [LayerInfo(name, h * w, c, (h, w), "stage") for name, (c, h, w) in zip(names, shapes, strict=True)]


def survey_modules(model: LoadedModel, stages: Sequence[LayerInfo]) -> dict[str, LayerInfo | str]:
    """Return how to read each module of the trunk, or why it cannot be read, in the order in which modules finish.

    The grids of the `stages` are the ones that tokens may lie on.
    """
    height, width = model.input_size
    outputs = _probe(model.module, (height, width))
    tall, wide = _probe_stretched(model, (2 * height, width)), _probe_stretched(model, (height, 2 * width))
    grids = {stage.grid for stage in stages if stage.grid} or _patch_grid(model)
    survey = {}
    for name, shapes in outputs.items():
        grown = None
        if name in tall and name in wide:
            grown = _grown_axes(shapes[0], tall[name][0]), _grown_axes(shapes[0], wide[name][0])
        survey[name] = _read_shapes(name, shapes, grown, grids, model)
    return survey


def readable(survey: Mapping[str, LayerInfo | str]) -> dict[str, LayerInfo]:
    """Return the modules of a survey that can be read."""
    return {name: layer for name, layer in survey.items() if isinstance(layer, LayerInfo)}


def _probe(module: nn.Module, size: Grid) -> dict[str, list[_Shape]]:
    """Return module -> shapes of its outputs, one per call, in the order in which modules finish."""
    outputs: dict[str, list[_Shape]] = {}

    def note(name: str, output: object) -> None:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        outputs.setdefault(name, []).append(shape)

    names = [name for name, _ in module.named_modules() if name]
    with torch.inference_mode(), hooks(module, [(name, partial(note, name)) for name in names]):
        forward_features(module, blank_images(module, size, _PROBE_IMAGES))
    return outputs


def _probe_stretched(model: LoadedModel, size: Grid) -> dict[str, list[_Shape]]:
    """Return what `_probe` finds at another size, if necessary of a network built for it; empty if impossible."""
    with suppress(*NETWORK_ERRORS):
        return _probe(model.module, size)
    options = {**model.build_options, "num_classes": model.n_classes, "img_size": size}
    with suppress(*NETWORK_ERRORS):
        with torch.device("meta"):  # without numbers
            module = timm.create_model(model.spec.name, pretrained=False, **options)
        return _probe(module.eval(), size)
    return {}


def blank_images(module: nn.Module, size: Grid, n_images: int = 1) -> Tensor:
    """Return black images on the device of the module."""
    return torch.zeros(n_images, 3, *size, device=device_of(module))


def device_of(module: nn.Module) -> torch.device:
    """Return where the parameters of a module are; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _patch_grid(model: LoadedModel) -> set[Grid]:
    patch = getattr(getattr(model.module, "patch_embed", None), "patch_size", None)
    if not isinstance(patch, tuple) or len(patch) != 2:
        return set()
    return {(model.input_size[0] // patch[0], model.input_size[1] // patch[1])}


def _read_shapes(
    name: str, shapes: Sequence[_Shape], grown: _Grown, grids: set[Grid], model: LoadedModel
) -> LayerInfo | str:
    """Return how to read a module from the shapes it gave, or why it cannot be read."""
    if len(shapes) > 1:
        return f"runs {len(shapes)} times in one pass, so its name does not identify one output"
    shape = shapes[0]
    if isinstance(shape, str):
        return f"returns a {shape}, not a tensor"
    wrong = layer = None
    if len(shape) not in (3, 4):
        wrong = "neither tokens (batch, tokens, channels) nor a feature map"
    elif shape[0] != _PROBE_IMAGES:
        wrong = "the first axis is not the image (windows, or the same for all images?)"
    elif len(shape) == 4:
        layer = _read_map(name, shape, grown, grids, model)
        wrong = "its axes are not channels, rows and columns of the image"
    elif grown not in (None, ((1,), (1,))):
        wrong = "its second axis is not the positions, of which a larger image has more"
    else:
        layer = _read_tokens(name, shape, grids, model.n_prefix_tokens)
        wrong = (
            f"{shape[1]} tokens lie on none of the grids {sorted(grids)}, with or without "
            f"{model.n_prefix_tokens} prefix tokens"
        )
    return layer or f"has the output shape {shape} for {_PROBE_IMAGES} images: {wrong}"


def _read_tokens(name: str, shape: tuple[int, ...], grids: set[Grid], n_prefix: int) -> LayerInfo | None:
    # Without a prefix first: some networks add the class token only near their end.
    for dropped in dict.fromkeys((0, n_prefix)):
        for grid in grids:
            if shape[1] - dropped == grid[0] * grid[1]:
                return LayerInfo(name, grid[0] * grid[1], shape[2], grid, "module", "tokens", dropped)
    return None


def _read_map(
    name: str, shape: tuple[int, ...], grown: _Grown, grids: set[Grid], model: LoadedModel
) -> LayerInfo | None:
    _, a, b, c = shape
    first, last = (b, c) in grids, (a, b) in grids
    if grown is not None:
        first, last = grown == ((2,), (3,)), grown == ((1,), (2,))
    elif first and last:  # as many channels as rows and columns
        first, last = False, getattr(model.module, "output_fmt", None) == "NHWC"
    if first:
        return LayerInfo(name, b * c, a, (b, c), "module", "nchw")
    return LayerInfo(name, a * b, c, (a, b), "module", "nhwc") if last else None


def _grown_axes(shape: _Shape, other: _Shape) -> tuple[int, ...]:
    if isinstance(shape, str) or isinstance(other, str) or len(other) != len(shape):
        return ()
    return tuple(
        axis for axis, (before, after) in enumerate(zip(shape, other, strict=True)) if after > before
    )
