"""The outputs of a network's head, read as a layer of one token, so that they are handled like any layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from semrsm_dist.errors import ConfigError
from semrsm_dist.features.extractor import Extractor
from semrsm_dist.features.models import LoadedModel
from semrsm_dist.features.probing import LayerInfo

OUTPUTS = "@outputs"
"""Name of the outputs among layers; no module can have it."""

MEANINGS = ("classes", "labels")


def describe_outputs(model: LoadedModel) -> LayerInfo:
    """Return the outputs of a model as a layer: one token, a channel for each output, before softmax or sigmoid.

    Raises ConfigError if the model has no head.
    """
    if not model.n_classes:
        raise ConfigError(
            f"model {model.spec.name!r} has no class head, so it predicts no classes; take a model that was "
            "trained as a classifier, or weights with a classifier in them"
        )
    return LayerInfo(OUTPUTS, 1, model.n_classes, None, "module", "class")


def find_meaning(model: LoadedModel, given: str | None = None) -> str:
    """Return what the outputs of a model mean: `classes` (exactly one applies) or `labels` (each applies or not).

    What users have `given` comes before what the weights state. Raises ConfigError if the model has no head, `given`
    is neither of the two, or the meaning of the outputs is unknown.
    """
    describe_outputs(model)
    if given is not None and given not in MEANINGS:
        raise ConfigError(f"outputs must be one of {', '.join(MEANINGS)}, not {given!r}")
    meaning = given or model.outputs
    if meaning is None:
        raise ConfigError(
            f"nothing says that the {model.n_classes} outputs of {model.spec.name!r} are classes; those of an "
            "embedding, as of CLIP, are not, and no probabilities can be made of them: take a classifier, or say "
            "outputs=classes or outputs=labels if you know that these weights are one"
        )
    return meaning


class OutputExtractor(Extractor):
    """An extractor of the head's outputs, with the preprocessing, batches and precision of one of layers."""

    def _find(self, names: Sequence[str]) -> tuple[list[LayerInfo], Callable[[Tensor], dict[str, Tensor]]]:
        layer, module = describe_outputs(self.model), self.model.module

        def read(batch: Tensor) -> dict[str, Tensor]:
            outputs: Any = module(batch)
            if not isinstance(outputs, Tensor) or outputs.shape != (len(batch), layer.n_channels):
                found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise ConfigError(
                    f"the head of {self.model.spec.name!r} gave {found} for {len(batch)} images instead of "
                    f"{layer.n_channels} numbers for each; it does not classify images"
                )
            return {layer.name: outputs[:, None, :]}

        return [layer], read
