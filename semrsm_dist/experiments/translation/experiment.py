"""Shifted crops, which ask whether an image is like itself when everything in it moves.

Of each image two square crops are compared, one some way below the other, and against them the crops of different
images. Wald et al. (2024) do so with one shift; here it goes from nothing to theirs (20 rows of 64, so that 44 are
shared). Position by position, a shifted image soon looks like any other; after matching it should not.

The crops are a run of their own, the unshifted ones against those of all shifts, below the given run's directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.sources.crops import ShiftedCrops, crop_id
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.errors import ConfigError, InputError, counted
from semrsm_dist.evaluation.bootstrap import draw_counts
from semrsm_dist.evaluation.contrast import contrast_pairs
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.runs import choose_kernels, complete_run, evaluation_folder
from semrsm_dist.experiments.translation import TranslationParameters
from semrsm_dist.experiments.translation.report import draw_translation, tabulate_contrast, write_text
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run
from semrsm_dist.store.tiles import KINDS


def evaluate(config: RunConfig, parameters: TranslationParameters, reporter: Reporter) -> Findings:
    """Compare shifted crops of the same image with those of different images, layer by layer.

    Scenes of digits are made so much larger that their crops have the size of the scenes.
    """
    derived = derive_config(config, parameters)
    run = complete_run(derived, reporter)
    rows = pd.DataFrame(
        _measure(run, parameters.shifts, resamples=parameters.resamples, seed=parameters.seed)
    )
    return Findings(
        rows,
        lambda figure: draw_translation(figure, rows),
        write_text(rows, n_requested=parameters.images),
        {"config": derived.model_dump(mode="json")},
    )


def derive_config(config: RunConfig, parameters: TranslationParameters) -> RunConfig:
    """Return the run that matches the unshifted crops (columns) with those of all shifts (rows)."""
    images, shifts, share, seed = parameters.images, parameters.shifts, parameters.share, parameters.seed
    data = config.data.of if isinstance(config.data, ShiftedCrops) else config.data
    if isinstance(data, FeaturesData):
        raise ConfigError(
            "the experiment translation crops images, but this run has ready-made features; give a run whose data are "
            "images and that has a model"
        )
    sample: int | None = images
    if isinstance(data, DigitScenes):
        data = data.model_copy(update={"canvas": round(data.canvas / share), "n_images": images})
        sample = None
    crops = {"source": "crops", "of": data.model_dump(), "share": share, "sample": sample, "seed": seed}
    # Other crops are another run: each has a directory of its own, and is found there again.
    digest = hashlib.sha256(json.dumps([images, list(shifts), share, seed]).encode()).hexdigest()[:8]
    return RunConfig.model_validate(
        {
            **config.model_dump(),
            "run": evaluation_folder(config) / "translation" / f"{images}-images-{digest}",
            "data": {**crops, "shifts": (0.0,)},
            "queries": {**crops, "shifts": shifts},
            "kernels": choose_kernels(config, KERNELS),
        }
    )


def _measure(run: Run, shifts: Sequence[float], *, resamples: int, seed: int) -> Iterator[dict[str, object]]:
    """Yield the rows of the table."""
    columns, rows = _find_crops(run, shifts)
    neither = _alike(run)[np.ix_(columns, columns)]
    counts = draw_counts(len(columns), resamples=resamples, seed=seed)
    pixels = _input_pixels(run)
    for layer in run.requested_layers:
        n_tokens = run.record.layers[layer].n_tokens
        for kernel in KERNELS:
            for kind in KINDS:
                read = run.similarity_rows(layer, kernel, kind)
                for shift, places in zip(shifts, rows, strict=True):
                    similarity = read(slice(places[0], places[-1] + 1))[places - places[0]][:, columns]
                    similarity[neither] = np.nan
                    where = {
                        "layer": layer,
                        "n_tokens": n_tokens,
                        "kernel": kernel,
                        "kind": kind,
                        "shift": shift,
                        "pixels": shift * pixels,
                    }
                    for row in tabulate_contrast(contrast_pairs(similarity, counts)):
                        yield {**where, **row, "n_images": len(columns), "resamples": resamples, "seed": seed}


def _find_crops(run: Run, shifts: Sequence[float]) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
    """Return the columns of the images that could be read, and for each shift the rows of the same images."""
    names = [name.rpartition("@")[0] for name in run.manifest("images").image_ids()]
    places = {name: row for row, name in enumerate(run.manifest("queries").image_ids())}
    columns = [
        column for column, name in enumerate(names) if all(crop_id(name, shift) in places for shift in shifts)
    ]
    if len(columns) < 2:
        raise InputError(
            f"{counted(len(columns), 'image')} could be read, but the experiment compares different images; give a run "
            "with at least two readable ones"
        )
    rows = [np.array([places[crop_id(names[column], shift)] for column in columns]) for shift in shifts]
    return np.array(columns), rows


def _alike(run: Run) -> NDArray[np.bool_]:
    """Return which pairs of different images are of one group or one content: neither the same nor different."""
    images = run.manifest("images").readable
    alike = np.zeros((len(images), len(images)), dtype=bool)
    for names in ([row.sha256 for row in images], [row.group for row in images]):
        known = {name: code for code, name in enumerate(dict.fromkeys(names))}
        codes = np.array([-1 if name is None else known[name] for name in names])
        alike |= (codes[:, None] == codes) & (codes >= 0)
    np.fill_diagonal(alike, False)
    return alike


def _input_pixels(run: Run) -> float:
    """Return how many pixels of the network's input are the height of a crop, before what the transform cuts off."""
    facts = run.record.model.facts["preprocessing"]
    return float(facts["input_size"][1]) / float(facts.get("crop_pct") or 1.0)
