"""The sections `data` and `queries`: one for each source of images or features.

Which images a run has is told by the hashes in its manifest, so what only chooses among files (a path, a split, a
sample) is not marked `AffectsResult`. What makes other images out of the same files is: a file that has not changed
since is not hashed again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from semrsm_dist.fields import (
    AffectsResult,
    Count,
    LayerName,
    LocalPath,
    Location,
    Pair,
    Real,
    Section,
    Seed,
)

Digits = Annotated[Pair, AffectsResult()]


class DigitScenesData(Section):
    """Scenes of handwritten digits, generated from a package that is installed with this one."""

    source: Literal["digits"]
    n_images: Annotated[Count, AffectsResult()] = 400
    digits: Digits = (1, 4)
    canvas: Annotated[Count, AffectsResult()] = 96
    scale: Annotated[tuple[Real, Real], AffectsResult()] = (2.5, 4.0)
    overlap: Annotated[Real, Field(ge=0, le=1), AffectsResult()] = 0.1
    split: Annotated[Literal["evaluation", "training"], AffectsResult()] = "evaluation"
    seed: Annotated[Seed, AffectsResult()] = 0
    displacement: Annotated[Real, Field(ge=0, le=1), AffectsResult(added=True)] = 1.0
    arrangement: Annotated[Literal["free", "pair"], AffectsResult(added=True)] = "free"

    @field_validator("digits", "scale")
    @classmethod
    def _smallest_first(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("expected [smallest, largest], both positive; swap or correct them")
        return value


class FolderData(Section):
    """A folder of images; the first folder level below it is the class."""

    source: Literal["folder"]
    path: Location


class TableData(Section):
    """A Parquet or CSV table with the columns `image_id`, `uri`, `labels` and, if wanted, `group`."""

    source: Literal["table"]
    path: Location


class EgoObjectsData(Section):
    """EgoObjects: the folder of its annotation files and images, or each of them by itself."""

    source: Literal["egoobjects"]
    path: Location
    split: Literal["train", "eval", "val", "test"] = "eval"
    annotations: Location | None = None
    metadata: Location | None = None
    images: Location | None = None
    sample: Count | None = None
    seed: Seed = 0


class CityscapesData(Section):
    """Cityscapes: the folder of `leftImg8bit` and `gtFine`."""

    source: Literal["cityscapes"]
    path: Location
    split: Literal["train", "val", "test"] = "val"
    ignore: tuple[str, ...] | None = None
    sample: Count | None = None
    seed: Seed = 0


class TinyImageNetData(Section):
    """TinyImageNet: the folder of `wnids.txt`, `train` and `val`."""

    source: Literal["tiny-imagenet"]
    path: Location
    split: Literal["train", "val"] = "val"
    sample: Count | None = None
    seed: Seed = 0


class ImageNetData(Section):
    """The validation images of ImageNet: the folder of `val`, in class folders or with the development kit."""

    source: Literal["imagenet"]
    path: Location
    devkit: Location | None = None
    sample: Count | None = None
    seed: Seed = 0


Images = (
    DigitScenesData
    | FolderData
    | TableData
    | EgoObjectsData
    | CityscapesData
    | TinyImageNetData
    | ImageNetData
)
"""Sources of images as they are."""


class CropsData(Section):
    """Square crops of the images of another source, shifted down by shares of their side."""

    source: Literal["crops"]
    of: Annotated[Images, Field(discriminator="source")]
    share: Annotated[Real, Field(gt=0, le=1), AffectsResult(added=True)] = 64 / 84
    shifts: Annotated[tuple[Annotated[Real, Field(ge=0)], ...], Field(min_length=1)] = (0.0,)
    sample: Count | None = None
    seed: Seed = 0


class FeaturesData(Section):
    """Ready-made features: one array per layer, (N, S, C) or (N, C, H, W), in `.npy` or Zarr.

    Where images differ in their number of tokens, `token_counts` names a `.npy` file of N whole numbers for each
    layer; what an array holds beyond an image's tokens is ignored.
    """

    source: Literal["features"]
    layers: Annotated[dict[LayerName, LocalPath], Field(min_length=1)]
    token_counts: dict[LayerName, LocalPath] = Field(default_factory=dict)
    layout: Literal["auto", "nsc", "nchw"] = "auto"
    table: Location | None = None

    @model_validator(mode="after")
    def _counts_belong_to_layers(self) -> FeaturesData:
        unknown = sorted(self.token_counts.keys() - self.layers.keys())
        if unknown:
            raise ValueError(
                f"token_counts names layers that are not there: {unknown}; correct or remove them"
            )
        return self


Data = Annotated[Images | FeaturesData | CropsData, Field(discriminator="source")]
