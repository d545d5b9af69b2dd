"""The engine `semrsm` of xarray, which finds it by its entry point."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from semrsm_dist.results.run import Run


class SemrsmBackend(BackendEntrypoint):
    """Opens a layer of a run directory lazily: ``xarray.open_dataset(run, engine="semrsm", layer="layer3")``."""

    description = "Open a layer of a run of semrsm"
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "layer")

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        layer: str | None = None,
    ) -> xr.Dataset:
        """Open a layer, which must be named unless there is only one.

        Raises
        ------
        ConfigError
            If there is no run, or not one layer that is meant.
        IncompleteError
            If the layer has not been finished yet.
        """
        run = Run(filename_or_obj)
        dropped = {drop_variables} if isinstance(drop_variables, str) else set(drop_variables or ())
        dataset = run.dataset(run.chosen_layer(layer))
        return dataset.drop_vars(dropped & {str(name) for name in dataset.variables})

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether this is a run directory."""
        return isinstance(filename_or_obj, str | os.PathLike) and all(
            (Path(filename_or_obj) / name).exists() for name in ("run.json", "tiles.zarr")
        )
