"""Ready-made features instead of images and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semrsm_dist.data.annotations import read_annotation
from semrsm_dist.data.locations import exists, file_of
from semrsm_dist.data.source import DataSource
from semrsm_dist.errors import InputError
from semrsm_dist.fields import LayerName, LocalPath, Location

FILE_NAMES = "file_names.txt"
"""The list of images that thingsvision writes."""


class FeaturesData(DataSource):
    """Ready-made features: one array per layer, (N, S, C), (N, C, H, W) or (N, H, W, C).

    It is a `.npy` file, a Zarr array, or a tensor in a `.safetensors` or `.pt` file.
    If images differ in their number of tokens, `token_counts` names a `.npy` file of N whole numbers for each
    layer; what an array holds beyond an image's tokens is ignored.

    The table names the images: `image_id`, `labels`, and optionally `group` and `uri`, where the image is that a report
    shows. As in a table of images, it must lie in the table's folder unless `allow_outside` is set.

    A layer may be a folder of thingsvision, with `features.npy` or `features.pt`. Without a table, the `file_names.txt`
    in it names the images.
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

    def find_table(self, known: object = None) -> Location | None:
        """Return the table of images or, without one, the list that thingsvision writes beside features.

        Raises InputError if the lists of two layers differ.

        Parameters
        ----------
        known
            What was found before: it is found again where nothing is left of any list.
        """
        if self.table is not None:
            return self.table
        lists = [path.expanduser() / FILE_NAMES for path in self.layers.values()]
        there = [path for path in lists if path.is_file()]
        if not there:
            return next((path for path in lists if str(path.absolute()) == known), None)
        contents = {path: read_annotation(str(path), "extract the features again").split() for path in there}
        for path in there[1:]:
            if contents[path] != contents[there[0]]:
                raise InputError(
                    f"{path} and {there[0]} name different images, or in another order, so layers would be compared of "
                    "different images: extract them again from the same images, or give a table if they are the same"
                )
        return there[0]

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
