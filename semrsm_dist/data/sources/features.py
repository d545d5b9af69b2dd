"""Ready-made features instead of images and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semrsm_dist.data.locations import exists, file_of
from semrsm_dist.data.source import DataSource
from semrsm_dist.errors import InputError
from semrsm_dist.fields import LayerName, LocalPath, Location


class FeaturesData(DataSource):
    """Ready-made features: one array per layer, (N, S, C), (N, C, H, W) or (N, H, W, C).

    It is a `.npy` file, a Zarr array, or a tensor in a `.safetensors` or `.pt` file.
    If images differ in their number of tokens, `token_counts` names a `.npy` file of N whole numbers for each
    layer; what an array holds beyond an image's tokens is ignored.

    The table names the images: `image_id`, `labels`, and optionally `group` and `uri`, where the image is that a report
    shows. As in a table of images, it must lie in the table's folder unless `allow_outside` is set.
    """

    source: Literal["features"] = "features"
    layers: Annotated[dict[LayerName, LocalPath], Field(min_length=1)]
    token_counts: dict[LayerName, LocalPath] = Field(default_factory=dict)
    layout: Literal["auto", "nsc", "nchw", "nhwc"] = "auto"
    table: Location | None = None
    allow_outside: bool = False

    @model_validator(mode="after")
    def _counts_belong_to_layers(self) -> FeaturesData:
        unknown = sorted(self.token_counts.keys() - self.layers.keys())
        if unknown:
            raise ValueError(
                f"token_counts names unknown layers: {', '.join(unknown)}; correct or remove them"
            )
        return self

    def check(self) -> None:
        """Look whether the files are there."""
        places: dict[str, str | Path] = {
            f"layers.{layer}": file_of(path) for layer, path in self.layers.items()
        }
        places |= {f"token_counts.{layer}": path for layer, path in self.token_counts.items()}
        places |= {"table": self.table} if self.table is not None else {}
        missing = [
            f"{key}: {str(place)!r} does not exist" for key, place in places.items() if not exists(place)
        ]
        if missing:
            raise InputError("; ".join(missing) + "; check the path")
