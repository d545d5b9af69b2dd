"""Importing ready-made features: copy them into the run, chunk by chunk, and check every number on the way.

The copy makes the run self-contained and brings the features into the layout that matching reads: whole chunks in
one chunk. It is bounded in memory whatever the size of the source.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from semrsm_dist.engine.protocol import Receipt, Resources, Task
from semrsm_dist.errors import InputError, WorkError
from semrsm_dist.features.token_counts import load_token_counts
from semrsm_dist.pipeline.faults import failure_receipt, first_cause
from semrsm_dist.pipeline.session import Session, slices
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.feature_source import open_array
from semrsm_dist.store.features import FeatureStore

TASK_CHUNKS = 8


@dataclass(frozen=True)
class ImportWorker:
    """Copies chunks (layer, number) of ready-made features into the run.

    Parameters
    ----------
    run, side
        The run directory and which of its sides.
    sources
        The array file of each layer.
    token_counts
        For layers whose images differ in their number of tokens, the file that tells it.
    layout
        How 4-D arrays are laid out; see `open_array`.
    chunk_size
        Images of a feature chunk.
    """

    run: Path
    side: str
    sources: Mapping[str, Path]
    token_counts: Mapping[str, Path]
    layout: str
    chunk_size: int

    def __call__(self, units: tuple[Hashable, ...]) -> Iterator[Receipt]:
        """Copy chunks; the value of a receipt lists images (by index) whose features are not finite."""
        for unit in units:
            layer, index = cast("tuple[str, int]", unit)
            try:
                yield self._copy(layer, index)
            except Exception as error:  # noqa: BLE001 - recorded against the chunk, which is tried again
                yield failure_receipt(unit, error, self.run)

    def _copy(self, layer: str, index: int) -> Receipt:
        source = open_array(self.sources[layer], self.layout)
        start = index * self.chunk_size
        stop = min(start + self.chunk_size, source.n_images)
        z = source.read(start, stop)
        counts = load_token_counts(self.token_counts.get(layer), source.n_images, source.n_tokens)[start:stop]
        store = FeatureStore(RunDirectory(self.run).features, self.side, layer)
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused below
            stored = z.astype(store.dtype(), copy=False)
        beyond = np.arange(source.n_tokens) >= counts[:, None]
        bad = np.flatnonzero(~(np.isfinite(stored).all(axis=2) | beyond).all(axis=1))
        if bad.size:
            overflow = bool(np.isfinite(z[bad]).all())
            return Receipt(
                (layer, index), value=[(layer, start + int(k), overflow) for k in bad], counts={"images": 0}
            )
        store.write_chunk(index, stored, counts)
        return Receipt((layer, index), counts={"images": stop - start})


def import_features(
    session: Session,
    side: str,
    sources: Mapping[str, Path],
    token_counts: Mapping[str, Path],
    layout: str,
    *,
    image_ids: Sequence[str],
    chunk_size: int,
) -> None:
    """Copy what is missing of one side's ready-made features.

    Raises
    ------
    InputError
        If features are NaN or infinite, naming the images and the layer.
    WorkError
        If some chunks could not be copied.
    """
    spans = slices(len(image_ids), chunk_size)
    everything = [(layer, index) for layer in sources for index in range(len(spans))]
    present = {
        (layer, index)
        for layer in sources
        for index in FeatureStore(session.directory.features, side, layer).present()
    }
    missing = [unit for unit in everything if unit not in present]
    session.counts["import"]["found"] += len(everything) - len(missing)
    session.counts["import"]["computed"] += len(missing)
    if not missing:
        return
    refused: list[tuple[str, int, bool]] = []
    worker = ImportWorker(session.directory.path, side, dict(sources), dict(token_counts), layout, chunk_size)
    failures = session.work(
        "import",
        lambda: session.engine.start_tasks(
            worker, Resources(cpus=1, memory=int(session.config.matching.worker_memory))
        ),
        [Task(units=tuple(missing[start:stop])) for start, stop in slices(len(missing), TASK_CHUNKS)],
        total=len(sources) * len(image_ids),
        done=sum(spans[index][1] - spans[index][0] for _, index in present),
        unit="images",
        amount=lambda receipt: int(receipt.counts["images"]),
        on_value=lambda receipt: refused.extend(cast("list[tuple[str, int, bool]]", receipt.value)),
    )
    if refused:
        _refuse(refused, image_ids, side)
    if failures:
        raise WorkError(
            f"{len(failures)} of {len(everything)} chunks of {side} could not be imported; the others are kept and the "
            f"same command tries again. First cause: {first_cause(failures)}"
        )


def _refuse(refused: list[tuple[str, int, bool]], image_ids: Sequence[str], side: str) -> None:
    refused.sort()
    names = [f"{image_ids[index]!r} (index {index}, layer {layer})" for layer, index, _ in refused[:5]]
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    remedy = (
        "they overflow the stored type: use features.dtype: float32, or scale them"
        if all(overflow for _, _, overflow in refused)
        else "mend the source, or leave these images out of it"
    )
    raise InputError(
        f"{side}: features of {', '.join(names)}{more} are NaN or infinite; no similarity can be computed from "
        f"them: {remedy}; then start in a new run directory"
    )
