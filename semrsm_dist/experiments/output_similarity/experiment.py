"""Whether images that look alike to a model get similar outputs: RSM entries against the classifier's outputs.

The similarity of each pair of images is correlated with the Jensen-Shannon divergence (JSD) of the outputs of the
model's head. The divergence is large where outputs differ: a good RSM gives a negative correlation, and the more
negative the better (Wald et al. 2024, the table of output similarities).
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from semrsm_dist.config.schema import RunConfig
from semrsm_dist.data.opening import require_input
from semrsm_dist.errors import InputError, counted, reason_of
from semrsm_dist.evaluation.agreement import Estimate, agreement
from semrsm_dist.evaluation.divergence import (
    Outputs,
    outputs_from_probabilities,
    outputs_of_classes,
    outputs_of_labels,
)
from semrsm_dist.evaluation.entries import ROWS_AT_ONCE, Entries, row_slices
from semrsm_dist.experiments.evidence import Findings
from semrsm_dist.experiments.output_similarity import OutputSimilarityParameters
from semrsm_dist.experiments.output_similarity.report import draw_correlations, write_text
from semrsm_dist.experiments.runs import complete_run, evaluation_folder, require_symmetric
from semrsm_dist.matching.kernels import KERNELS
from semrsm_dist.pipeline import driver
from semrsm_dist.pipeline.stages.outputs import require_outputs
from semrsm_dist.plot.looks import DIFFERENCE
from semrsm_dist.progress import Reporter
from semrsm_dist.results.run import Run
from semrsm_dist.store.npy import write_npy
from semrsm_dist.store.paths import writing
from semrsm_dist.store.tiles import KINDS

MEASURES = ("pearson", "spearman")


def evaluate(config: RunConfig, parameters: OutputSimilarityParameters, reporter: Reporter) -> Findings:
    """Correlate RSM entries with the divergence of the classifier's outputs, for all layers, kernels and kinds."""
    resamples, seed, probabilities = parameters.resamples, parameters.seed, parameters.probabilities
    require_symmetric(config, "output-similarity")
    # What cannot be used is found out before hours of matching.
    if probabilities is None:
        require_outputs(config, parameters.outputs)
        run = complete_run(config, reporter)
        said, meaning = _find_outputs(config, parameters.outputs, reporter)
    else:
        said, meaning = outputs_from_probabilities(_load(probabilities), where=str(probabilities)), "given"
        run = complete_run(config, reporter)
    n_images = len(run.manifest().image_ids())
    if len(said.probabilities) != n_images:
        raise InputError(
            f"{probabilities}: probabilities of {counted(len(said.probabilities), 'image')}, but the run has "
            f"{n_images}; give one row for each image that could be read, in the order of the run's images.parquet"
        )
    rows = _correlate(run, said, evaluation_folder(config), reporter, resamples=resamples, seed=seed)
    table = pd.DataFrame(rows).assign(n_images=n_images, outputs=meaning, resamples=resamples, seed=seed)
    return Findings(
        table,
        lambda figure: draw_correlations(figure, table),
        write_text(table),
        {"outputs": meaning},
    )


def _find_outputs(config: RunConfig, outputs: str | None, reporter: Reporter) -> tuple[Outputs, str]:
    """Return what the model says of each image as distributions, and what they are of."""
    found = driver.compute_outputs(config, meaning=outputs, reporter=reporter)
    make = outputs_of_classes if found.meaning == "classes" else outputs_of_labels
    return make(found.logits), found.meaning


def _load(path: Path) -> NDArray[Any]:
    require_input(path)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read as an array of probabilities ({reason_of(error)}); check the path, or "
            "write it with numpy.save"
        ) from error
    return array


def _correlate(
    run: Run, said: Outputs, folder: Path, reporter: Reporter, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return rows of the table: the RSMs of all layers, kernels and kinds against the divergences."""
    n = len(said.probabilities)
    rows: list[dict[str, Any]] = []
    with (
        _keep_divergence(said, folder) as divergence,
        reporter.stage("evaluation", len(run.requested_layers) * len(KERNELS), "kernels") as shown,
    ):
        for layer, kernel in itertools.product(run.requested_layers, KERNELS):
            found = {}
            for kind in KINDS:
                entries = run.similarity_rows(layer, kernel, kind)
                pairs = Entries(entries, lambda rows: divergence[rows], n, rows_at_once=run.chunk_size(layer))
                found[kind] = agreement(pairs, MEASURES, resamples=resamples, seed=seed)
            rows += _tabulate({"layer": layer, "kernel": kernel}, found)
            shown.advance(1)
    return rows


@contextlib.contextmanager
def _keep_divergence(said: Outputs, folder: Path) -> Iterator[NDArray[np.float64]]:
    """Give all divergences (N, N), computed once and mapped from a temporary file: for many images they are large."""
    n, read = len(said.probabilities), said.divergence_rows()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=folder, prefix=".divergence-")
    with place:
        path = Path(place.name) / "divergence.npy"
        write_npy(path, (n, n), np.float64, map(read, row_slices(n, ROWS_AT_ONCE)))
        yield np.load(path, mmap_mode="r")


def _tabulate(place: dict[str, Any], found: dict[str, dict[str, Estimate]]) -> list[dict[str, Any]]:
    """Return a row for each measure and kind, and one for the difference of the kinds."""
    rows: list[dict[str, Any]] = []
    for measure in MEASURES:
        estimates = {kind: found[kind][measure] for kind in KINDS}
        estimates[DIFFERENCE] = estimates["semantic"].minus(estimates["spatio-semantic"])
        rows += [
            {**place, "kind": kind, "measure": measure, **estimate.columns()}
            for kind, estimate in estimates.items()
        ]
    return rows
