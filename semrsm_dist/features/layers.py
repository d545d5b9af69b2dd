"""From the layers of a network to representations: listing them, their memory layouts, reading them.

A representation is (S, C): one vector of C channels per position of the image, in row-major order. Networks
return their layers as (B, C, H, W), as (B, H, W, C) or as tokens (B, T, C) with class and register tokens in
front. What an axis means is never guessed from its size alone: the stages come from timm's own
`forward_intermediates`, and any other module is read only if its axes follow the image as positions do.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from semrsm_dist.errors import ConfigError, did_you_mean
from semrsm_dist.features import registry
from semrsm_dist.features.models import IN_MEMORY, LoadedModel
from semrsm_dist.features.probing import (
    CLASS_TOKEN,
    LayerInfo,
    describe_stages,
    forward_features,
    forward_stages,
    hooks,
    readable,
    stage_names,
    survey_modules,
    to_positions,
)


def describe_layers(model: LoadedModel, *, modules: bool = False) -> list[LayerInfo]:
    """List the layers of a model, in network order, by passing a blank image of its input size through it.

    With `modules`, the modules between the stages that can be read follow, in the order in which they run.
    """
    stages = describe_stages(model)
    if not modules:
        return stages
    others = readable(survey_modules(model, stages))
    return stages + [layer for name, layer in others.items() if name not in {stage.name for stage in stages}]


def resolve_layers(model: LoadedModel, patterns: Sequence[str]) -> list[LayerInfo]:
    """Turn names and globs into layers, in network order and without duplicates.

    A pattern is tried on the stages; only one that matches no stage is tried on all modules. A glob takes the modules
    that can be read; a plain name of one that cannot is an error that says why. A pattern followed by `@class` means
    the class token of those layers, as layers of one token; they come last. Raises ConfigError if a pattern matches
    nothing, or the named module has no vector per position, or no class token.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ConfigError(f"no layers were requested; choose some from: semrsm layers {model.spec.name}")
    by_position = [pattern for pattern in patterns if not pattern.endswith(CLASS_TOKEN)]
    by_class = [pattern.removesuffix(CLASS_TOKEN) for pattern in patterns if pattern.endswith(CLASS_TOKEN)]
    layers = _resolve_positions(model, by_position) if by_position else []
    return layers + (_resolve_class_tokens(model, by_class) if by_class else [])


def class_token_layers(model: LoadedModel) -> list[LayerInfo]:
    """List the class tokens that can be read, each as a layer of one token; none if the model has none.

    A model that pools over its positions may still have one, which was then not trained to represent the image.
    """
    if getattr(model.module, "cls_token", None) is None:
        return []
    return [
        replace(layer, name=name + CLASS_TOKEN, n_tokens=1, grid=None, layout="class", n_prefix=0)
        for name, layer in readable(survey_modules(model, describe_stages(model))).items()
        if layer.n_prefix
    ]


def _resolve_class_tokens(model: LoadedModel, patterns: Sequence[str]) -> list[LayerInfo]:
    layers = class_token_layers(model)
    names = [layer.module for layer in layers]
    stages = [name for name in stage_names(model.module) if name in names]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(stages, pattern) or fnmatch.filter(names, pattern)
        if not matches:
            there = f"there is one in {', '.join(stages or names)}" if names else "the model has none"
            raise ConfigError(
                f"no layer {pattern!r} of {model.spec.name!r} has a class token{did_you_mean(pattern, names)}; "
                f"{there}"
            )
        chosen.update(matches)
    return [layer for layer in layers if layer.module in chosen]


def _resolve_positions(model: LoadedModel, patterns: Sequence[str]) -> list[LayerInfo]:
    stages = {stage.name: stage for stage in describe_stages(model)}
    survey: dict[str, LayerInfo | str] = {}
    chosen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(stages, pattern)
        if not matches:
            survey = survey or survey_modules(model, list(stages.values()))
            matches = fnmatch.filter(readable(survey), pattern)
        if not matches:
            raise _no_such_layer(model, pattern, list(stages), survey)
        chosen.update(matches)
    picked = [layer for name, layer in (stages | readable(survey) | stages).items() if name in chosen]
    # Where a stage is also a module, the order in which modules finish orders both.
    order = list(survey)
    if all(layer.name in survey for layer in picked):
        picked.sort(key=lambda layer: order.index(layer.name))
    return picked


def _no_such_layer(
    model: LoadedModel, pattern: str, stages: list[str], survey: Mapping[str, LayerInfo | str]
) -> ConfigError:
    see = f"list all with: semrsm layers {model.spec.name} --modules"
    if model.spec.weights == IN_MEMORY:
        see = "list its modules with: [name for name, _ in model.named_modules()]"
    if pattern.startswith("decoder") and model.spec.name in registry.CLIPSEG and not model.prompt_tokens:
        return ConfigError(
            f"layer {pattern!r} of {model.spec.name!r} needs a prompt, which the decoder reads beside the image: set "
            "model.prompt, or choose layers of the vision tower"
        )
    silent = "does not run before the classifier, or inside a fused operation"
    refused = {name: why for name, why in survey.items() if isinstance(why, str)}
    refused |= {name: silent for name, _ in model.module.named_modules() if name and name not in survey}
    matched = fnmatch.filter(refused, pattern)
    if matched == [pattern]:
        return ConfigError(
            f"layer {pattern!r} of {model.spec.name!r} cannot be used: it {refused[pattern]}; {see}"
        )
    if matched:
        return ConfigError(
            f"none of the {len(matched)} layers {pattern!r} of {model.spec.name!r} can be used; "
            f"{matched[0]!r} {refused[matched[0]]}; {see}"
        )
    hint = did_you_mean(pattern, {*stages, *readable(survey)}) or "."
    listed = f" Its stages are {', '.join(stages)};" if stages else ""
    return ConfigError(f"model {model.spec.name!r} has no layer {pattern!r}{hint}{listed} {see}")


class LayerReader:
    """Read several layers of a model in one forward pass.

    Modules that timm's `forward_intermediates` bypasses (such as containers whose parts it runs one by one)
    cost a second pass when they are read together with stages.

    Parameters
    ----------
    model
        The model; moving its module to another device is left to the caller.
    layers
        From `describe_layers` or `resolve_layers` of the same model.
    """

    def __init__(self, model: LoadedModel, layers: Sequence[LayerInfo]) -> None:
        self._module = model.module
        self._layers = tuple(layers)
        self._hooked = [layer for layer in layers if layer.layout != "intermediate"]
        wanted = {layer.name for layer in layers if layer.layout == "intermediate"}
        self._indices = {i: name for i, name in enumerate(stage_names(model.module)) if name in wanted}

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """Return layer -> (B, S, C) for preprocessed images (B, 3, H, W), on the device of the batch.

        The tensors are copies: nothing the network does later changes them.
        """
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            if self._indices:
                with self._reading(self._hooked, found):
                    maps = forward_stages(
                        self._module, batch, list(self._indices), to_the_end=bool(self._hooked)
                    )
                for name, stage in zip(self._indices.values(), maps, strict=True):
                    found[name] = to_positions(stage, "intermediate")
            late = [layer for layer in self._hooked if layer.name not in found]
            if late:
                with self._reading(late, found):
                    forward_features(self._module, batch)
        return {layer.name: _checked(found, layer, len(batch)) for layer in self._layers}

    def _reading(self, layers: Sequence[LayerInfo], found: dict[str, Tensor]) -> AbstractContextManager[None]:
        def read(layer: LayerInfo, output: object) -> None:
            if isinstance(output, Tensor):
                # Copied at once: an activation in place may overwrite the output right after this.
                found[layer.name] = to_positions(output, layer.layout, layer.n_prefix)

        return hooks(self._module, [(layer.module, partial(read, layer)) for layer in layers])


def _checked(found: dict[str, Tensor], layer: LayerInfo, n_images: int) -> Tensor:
    z = found.get(layer.name)
    if z is None or z.shape != (n_images, layer.n_tokens, layer.n_channels):
        got = "nothing" if z is None else str(tuple(z.shape))
        raise ConfigError(
            f"layer {layer.name!r} gave {got} instead of ({n_images}, {layer.n_tokens}, {layer.n_channels}); "
            "the images do not have the size for which the layers were described"
        )
    return z
