"""The record of a run, run.json: a resume is checked against it, and readers take a run's sizes from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from semrsm_dist.data.opening import NOT_THERE
from semrsm_dist.errors import StorageError, UnreadableFileError, reason_of
from semrsm_dist.fields import Count, LayerName
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.store import paths
from semrsm_dist.store.chunk_labels import run_id
from semrsm_dist.store.fingerprint import Fingerprint
from semrsm_dist.store.paths import RunPath
from semrsm_dist.store.sealed import DIGEST, digest

FORMAT: Literal[4] = 4
"""Version of the run directory's layout."""

Side = Annotated[str, Field(pattern="^(images|queries)$")]
"""`images`: the columns, and the rows of a symmetric matrix; or `queries`: the rows of a rectangular one."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerSizes(_Part):
    """The sizes of a layer's representations: `n_tokens` is S, the largest of any image, `n_channels` is C."""

    n_tokens: Count
    n_channels: Count


class LayerRecord(LayerSizes):
    """What is recorded of a layer."""

    tile_size: Count
    """Images along an edge of its tiles."""
    pair_seconds: float = Field(gt=0, allow_inf_nan=False)
    """The matcher's estimate of the seconds of one pair, to weigh layers with each other."""
    facts: Fingerprint = Field(default_factory=dict)
    """What its numbers depend on in addition to the run's fingerprint."""


class ModelAnswer(_Part):
    """Facts found by loading the model."""

    question: dict[str, Any]
    """The configuration that they answer, and the versions of the libraries that build models."""
    weights: str | None = None
    """The absolute path of the file of weights, if there is one."""
    precision: str
    """The precision of the run, which it keeps on every machine."""
    facts: dict[str, Any]
    """What the features depend on."""
    layers: dict[LayerName, LayerSizes]
    """The sizes of the requested layers, in network order."""


class SourceAnswer(_Part):
    """Facts found by reading ready-made features, of one layer on one side."""

    path: str
    """Where they are."""
    signature: str
    """What changes when their files do."""
    layout: str
    """The order of their axes: "nsc", "nchw" or "nhwc"."""
    sha256: str
    """Their digest, valid as long as all else but `token_counts_path` is unchanged."""
    n_images: Count
    sizes: LayerSizes
    dtype: str
    """The type that they are read in."""
    token_counts_path: str | None = None
    """Where their token counts are, if they have any."""
    token_counts_sha256: str | None = None
    """The digest of these."""
    unequal: bool = False
    """Whether images differ in their number of tokens."""


class Answers(_Part):
    """Facts that a resume need not find again."""

    model: ModelAnswer | None = None
    """Of a run of images."""
    sources: dict[str, SourceAnswer] = Field(default_factory=dict)
    """Of ready-made features, by `side/layer`."""
    listings: dict[Side, Any] = Field(default_factory=dict)
    """What lists the images of each side, with absolute paths."""


class NeighbourSettings(NamedTuple):
    """The number of neighbours of an image, and their least similarity, if there is one."""

    k: int
    threshold: float | None

    def describe(self, counts: Mapping[Any, int]) -> str:
        """Return what a run of this many images, and maybe queries, keeps.

        >>> NeighbourSettings(5, None).describe({"images": 6}), NeighbourSettings(9, None).describe({"images": 9})
        ('5 neighbours of each image', 'up to 9 neighbours of each image')
        >>> NeighbourSettings(5, 0.5).describe({"images": 9, "queries": 3})
        'up to 5 neighbours of each query'
        """
        of_queries = "queries" in counts
        may_be_fewer = self.threshold is not None or self.k > counts["images"] - (not of_queries)
        row = "query" if of_queries else "image"
        return f"{'up to ' if may_be_fewer else ''}{self.k:,} neighbour{'s' * (self.k != 1)} of each {row}"


class RunRecord(_Part):
    """The record of a run."""

    format: Literal[4] = FORMAT
    """Version of the run directory's layout."""
    fingerprint: Fingerprint
    """What the numbers of all layers depend on."""
    layers: dict[LayerName, LayerRecord] = Field(min_length=1)
    """All layers that any session of the run requested, in network order."""
    requested: tuple[LayerName, ...] = Field(min_length=1)
    """Those that the last session requested: with these the run is complete."""
    chunk_size: Count
    """Images of a feature chunk."""
    batch_size: Count | None = None
    """Images per forward pass; None without a model."""
    counts: dict[Side, Count]
    """Number of usable images by side."""
    cached: Answers = Answers()
    """Facts that a resume need not find again."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration of the last session, for people."""
    versions: dict[str, str] = Field(default_factory=dict)
    """The versions of its libraries, for people."""

    @model_validator(mode="after")
    def _parts_fit(self) -> RunRecord:
        if "images" not in self.counts:
            raise ValueError("counts: the number of images is missing")
        unknown = sorted(set(self.requested) - self.layers.keys())
        if unknown:
            raise ValueError(f"requested: no layers of these names: {unknown}")
        return self

    @property
    def row_side(self) -> Side:
        """The side of the matrix's rows; its columns are always `images`."""
        return "queries" if "queries" in self.counts else "images"

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides of the run, `images` first."""
        return tuple(self.counts)

    @property
    def model(self) -> ModelAnswer:
        """The model of a run of images; raises ValueError if the run has ready-made features."""
        if self.cached.model is None:
            raise ValueError("a run of ready-made features has no model")
        return self.cached.model

    @property
    def matching(self) -> dict[str, Any]:
        """The name of the matcher as `matcher`, its `version`, and its parameters by name."""
        known = self.fingerprint.items()
        return {
            name.removeprefix("matching."): value for name, value in known if name.startswith("matching.")
        }

    @property
    def neighbours(self) -> NeighbourSettings | None:
        """What decides who is a neighbour, in a run that keeps neighbours instead of matrices."""
        k = self.fingerprint.get("output.neighbours.k")
        return None if k is None else NeighbourSettings(k, self.fingerprint["output.neighbours.threshold"])

    def id_of(self, layer: str | None = None) -> str:
        """Return an id of what the numbers of a layer, or of all layers, depend on: equal runs have equal ids."""
        return run_id(self.fingerprint | (self.layers[layer].facts if layer else {}))

    def layout(self, layer: str) -> Layout:
        """Return how a layer's matrix is cut into tiles."""
        return Layout.of_sides(self.counts, self.layers[layer].tile_size)


class OtherFormatError(StorageError):
    """The run directory is of another version."""


def read_record(path: RunPath) -> RunRecord:
    """Return the record that a file holds.

    Raises
    ------
    OtherFormatError
        If it is the record of another version.
    UnreadableFileError
        If the file system cannot read it.
    StorageError
        If it is damaged or not a record.
    FileNotFoundError, NotADirectoryError
        If there is none.
    """
    try:
        text = paths.read_file(path)
        content = from_json(text)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        is_there = isinstance(error, OSError) and not isinstance(error, NOT_THERE)
        kind = UnreadableFileError if is_there else StorageError
        raise kind(f"{path}: the record of the run cannot be read ({reason_of(error)})") from error
    found = (
        content.get("format", 1 if "fingerprint" in content else None) if isinstance(content, dict) else None
    )
    if type(found) is int and found != FORMAT:
        raise OtherFormatError(
            f"{path}: this run has format {found}, but this version of semrsm-dist reads and writes format {FORMAT}; "
            "nothing was changed: use the version that began the run, or start a new run directory (--set run=...)"
        )
    seal = content.pop(DIGEST, None) if isinstance(content, dict) else None
    try:
        record = RunRecord.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join(
            filter(None, (".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")))
        )
        raise StorageError(f"{path}: not the record of a run ({problem})") from error
    if seal != digest(content):
        raise StorageError(f"{path}: the record of the run is damaged (its digest does not fit its content)")
    return record
