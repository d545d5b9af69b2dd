"""A run, opened: what is stored of it, and what is made of it on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from semrsm_dist.progress import Reporter
from semrsm_dist.results.html import describe_run
from semrsm_dist.results.nearest import find_nearest
from semrsm_dist.results.reader import RunReader
from semrsm_dist.results.verification.report import SAMPLE, Report
from semrsm_dist.store.paths import RunPath

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from rsatoolbox.rdm.rdms import RDMs

    from semrsm_dist.results.pair import Pair


class Run(RunReader):
    """A run on disk or in an object store.

    Parameters
    ----------
    path
        The run directory, or its URI such as `s3://bucket/runs/digits`.

    Raises
    ------
    ConfigError
        If there is no run at `path`.
    """

    def _repr_html_(self) -> str:
        return describe_run(self)

    def nearest(
        self,
        image: int | str,
        k: int = 10,
        *,
        layer: str | None = None,
        kernel: str = "cosine",
        kind: str = "semantic",
        sigma: float | None = None,
    ) -> pd.DataFrame:
        """Return the images that are most similar to one, from the tiles of its row, or its neighbours.

        Parameters
        ----------
        image
            The image, or query, by its index or id.
        k
            How many; fewer are returned where there are fewer.
        layer
            One of `layers`; it may be left out where there is only one.
        kernel, kind, sigma
            Of the similarity, as in `similarity`. A run that keeps neighbours has those by semantic cosine alone.

        Returns
        -------
        pandas.DataFrame
            One row for each, by `rank` from 1: `image`, its id; `index`; `similarity`; for the semantic kind `gap`, by
            how much the similarity of the best permutation can be larger; and `labels`, joined by |. Equally similar
            images are in the order of the run. As among neighbours, the image itself and those of its group do not
            count; nor do those whose similarity is undefined.

        Raises
        ------
        ConfigError
            If there is no such image, layer, kernel or kind; if k is larger than the number of neighbours that the run
            keeps.
        IncompleteError
            If the layer has not been finished yet.
        """
        layer = self.chosen_layer(layer)
        return find_nearest(self, image, k, layer, kernel=kernel, kind=kind, sigma=sigma)

    def pair(
        self,
        i: int | str,
        j: int | str,
        *,
        layer: str | None = None,
        kernel: str = "cosine",
        sigma: float | None = None,
    ) -> Pair:
        """Match two images again, as the run did, and return how their tokens are matched.

        Parameters
        ----------
        i, j
            Image, or query, and image, each by its index or id.
        layer
            One of `layers`; it may be left out where there is only one.
        kernel, sigma
            Of the similarities, as in `similarity`.

        Returns
        -------
        Pair
            `similarity`, `upper_bound` and `identity` as the run has them, `permutation`, what each token contributes,
            and both images if they can be read. Of a run that keeps neighbours, what it does not keep is computed.

        Raises
        ------
        ConfigError
            If there is no such image, layer or kernel, or the matcher is no longer installed.
        IncompleteError
            If the layer has not been finished yet.
        StorageError
            If the features are gone or damaged, or are no longer those that the run matched.
        """
        from semrsm_dist.results.pair import find_pair  # noqa: PLC0415 - with matchers and data sources, slow to load

        return find_pair(self, i, j, self.chosen_layer(layer), kernel=kernel, sigma=sigma)

    def export(
        self,
        to: str = "npy",
        folder: str | Path | None = None,
        *,
        layers: Sequence[str] | None = None,
        kernels: Sequence[str] | None = None,
        kinds: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write matrices or neighbours for other programs; each file is there whole or not at all.

        Parameters
        ----------
        to
            Format: of matrices ``npy``, ``csv``, ``mat``, ``parquet``, ``zarr``, ``rsatoolbox`` or ``mne-rsa``; of
            neighbours ``edges``, ``csr`` or ``atlas``. The page on results says what each of them holds.
        folder
            Output folder, created if missing; by default `export` in the run directory. Files of the same name are
            replaced.
        layers
            None means all that the run's last session requested.
        kernels
            None means those of the run's configuration; of neighbours, cosine. As dissimilarities, inner products are
            left out with a warning, and refused if they are named here.
        kinds
            `semantic`, `spatio-semantic`; None means both. Neighbours are semantic.

        Returns
        -------
        list of Path
            What was written.

        Raises
        ------
        ConfigError
            If the run, or a kernel, cannot be exported in this format, a name is unknown, or a list is empty.
        IncompleteError
            If a layer has not been finished yet; nothing is written then.
        LimitError
            If the format or this machine's memory does not take so many images; nothing is written then.
        StorageError
            If a file cannot be written, or the run is damaged.
        """
        from semrsm_dist.results.export.exporting import export  # noqa: PLC0415 - needed by this method alone

        return export(self, to, folder, layers=layers, kernels=kernels, kinds=kinds)

    def to_rsatoolbox(
        self,
        *,
        layers: Sequence[str] | None = None,
        kernel: str = "cosine",
        kinds: Sequence[str] | None = None,
    ) -> RDMs:
        """Return dissimilarities, 1 minus the similarity, as `rsatoolbox.rdm.RDMs`.

        Parameters
        ----------
        layers, kinds
            As in `export`.
        kernel
            `cosine` or `rbf`.

        Returns
        -------
        rsatoolbox.rdm.RDMs
            An RDM for each layer and kind, which are its descriptors, over all images, whose descriptors are `image`,
            `labels` and `group`.

        Raises
        ------
        ConfigError
            If rsatoolbox is not installed, the run is rectangular or keeps neighbours, or the kernel has no
            dissimilarity.
        IncompleteError, LimitError
            As `export`.
        """
        from semrsm_dist.results.export.dissimilarities import make_rdms  # noqa: PLC0415
        from semrsm_dist.results.export.selection import Selection  # noqa: PLC0415

        return make_rdms(Selection(self, layers, [kernel], kinds))

    def to_mne_rsa(
        self, *, layer: str | None = None, kernel: str = "cosine", kind: str = "semantic"
    ) -> NDArray[np.float64]:
        """Return dissimilarities, 1 minus the similarity, as MNE-RSA and scipy's `squareform` take them.

        Parameters
        ----------
        layer
            One of `layers`; it may be left out where there is only one.
        kernel
            `cosine` or `rbf`.
        kind
            `semantic` or `spatio-semantic`.

        Returns
        -------
        ndarray of float64, (N (N - 1) / 2,)
            The pairs of different images, row after row.

        Raises
        ------
        ConfigError
            If the run is rectangular or keeps neighbours, or the kernel has no dissimilarity.
        IncompleteError
            If the layer has not been finished yet.
        """
        from semrsm_dist.results.export.dissimilarities import condense  # noqa: PLC0415
        from semrsm_dist.results.export.selection import Selection  # noqa: PLC0415

        return condense(Selection(self, [self.chosen_layer(layer)], [kernel], [kind]))

    def verify(
        self,
        *,
        fast: bool = False,
        images: bool = False,
        sample: int = SAMPLE,
        seed: int | None = None,
        reporter: Reporter | None = None,
    ) -> Report:
        """Check everything that is stored of the run; nothing is changed.

        While a driver is at work, what is there is checked, and nothing counts as missing.

        Parameters
        ----------
        fast
            Only list and decode all chunks: about as fast as reading them.
        images
            Read the images, or ready-made features, too, and compare their hashes with the manifest's; and extract the
            features of a few images again, where the model can be had.
        sample
            Pairs of each layer that are solved again, by an exact solver that the run does not use.
        seed
            Of the sample; None draws another one each time. The report has it.
        reporter
            Where progress is reported; None shows a bar in a notebook, and nothing elsewhere.

        Returns
        -------
        Report
            `is_sound`, the `faults`, what could not be checked, and what is not computed yet.

        Raises
        ------
        ConfigError
            If sample or seed is not a whole number from 0 on.
        """
        from semrsm_dist.results.verification.verify import verify  # noqa: PLC0415 - needed by this method alone

        with self.directory.shared() as is_working:
            return verify(
                self.directory,
                self.record,
                fast=fast,
                images=images,
                sample=sample,
                seed=seed,
                reporter=reporter,
                is_working=is_working,
            )


def open_run(path: str | RunPath) -> Run:
    """Open a run for reading; see `Run`."""
    return Run(path)
