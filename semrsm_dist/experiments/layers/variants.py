"""Runs of networks that were made from a run's network: the `after` of a before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from semrsm_dist.config.schema import DigitScenesData, FeaturesData, RunConfig
from semrsm_dist.errors import ConfigError
from semrsm_dist.experiments.layers import PRUNED, TUNED
from semrsm_dist.pipeline.inputs import model_spec

if TYPE_CHECKING:
    from semrsm_dist.features.models import ModelSpec

ORIGINAL = "original"
DEFAULT = ("pruned-0.5", "pruned-0.9", TUNED)


def default_variants(config: RunConfig) -> tuple[str, ...]:
    """Return the variants that are cheap to make of a run's network: those of the shipped ones, else none."""
    return DEFAULT if config.model is not None and config.model.weights == "digits" else ()


def require_network(config: RunConfig, variants: tuple[str, ...]) -> None:
    """Raise ConfigError unless the run has a network to make the variants of."""
    if variants and (config.model is None or isinstance(config.data, FeaturesData)):
        raise ConfigError(
            "ready-made features come without a network to prune or fine-tune; give the run of other features of the "
            "same images: --with other=CONFIG.yaml"
        )


def derive_config(config: RunConfig, name: str, images: int) -> RunConfig:
    """Return the run of a variant, or of the original, on the images of a run; the variant's weights are made here.

    Parameters
    ----------
    config
        The run.
    name
        A variant that `LayersParameters` accepts, or `ORIGINAL`.
    images
        How many scenes to take, if the images are scenes of digits; other images are all taken.

    Raises
    ------
    ConfigError, InputError
        If the model cannot be loaded, or not be fine-tuned.
    StorageError
        If the weights cannot be written.
    """
    if config.model is None:
        raise ConfigError("a variant needs a network; give a run with the section model")
    folder, data, model = config.run / "evaluation" / "layers", config.data, config.model
    run = folder / name
    if isinstance(data, DigitScenesData):
        data = data.model_copy(update={"n_images": min(data.n_images, images)})
        run = folder / f"{data.n_images}-images" / name  # fewer scenes are another run
    if name != ORIGINAL:
        weights = (folder / "weights" / f"{model.name}.{name}.safetensors").absolute()
        _make_weights(model_spec(model), name, weights)
        model = model.model_copy(update={"weights": str(weights)})
    return config.model_copy(update={"run": run, "data": data, "model": model})


def _make_weights(spec: ModelSpec, name: str, path: Path) -> None:
    from semrsm_dist.features.variants import save_pruned, save_tuned  # noqa: PLC0415 - torch only where it is needed

    pruned = PRUNED.fullmatch(name)
    if pruned is None:
        save_tuned(spec, path)
    else:
        save_pruned(spec, float(pruned[1]), path)
