"""The experiment `retrieval`."""

from typing import Literal

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive


class RetrievalParameters(Parameters):
    """Which scores, and how baselines are fitted."""

    k: Many[Positive] = Field(
        (1, 3, 5, 10), min_length=1, description="hits per query, with one score for each"
    )
    variance: float = Field(
        0.95, gt=0, le=1, description="share of the variance that PCA keeps before whitening"
    )
    centroids: Positive = Field(16, description="number of centroids of VLAD")
    gem: float = Field(
        3.0, ge=1, allow_inf_nan=False, description="power of GeM pooling; 1 is average pooling"
    )
    transport: float | None = Field(
        None,
        ge=0.03,
        le=10,
        description="entropy of optimal transport between tokens of length 1, such as 0.1; by default it is left out, "
        "as it takes as long as the run",
    )
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="semantic cosine in the run's first layer from which images count as near-duplicates, in "
        "addition to the groups of the data",
    )
    resamples: Positive = Field(
        1000, description="bootstrap samples, over queries; the database stays as it is"
    )
    min_area: float = Field(
        0.0,
        ge=0,
        le=1,
        description="labels whose objects cover less than this share of an image do not count, where areas are known",
    )
    weights: Literal["none", "count", "area"] = Field(
        "none",
        description="how labels are weighted in F1, where the source knows this: by the number or the area of their "
        "objects, so that a hit need not share what is small; F1 is then the complement of the Bray-Curtis "
        "dissimilarity",
    )
    search: Literal["matrix", "progressive"] = Field(
        "matrix",
        description="how hits by semantic cosine are found; progressive solves few pairs, and both find the same",
    )


EXPERIMENT = Experiment(
    summary="F1@k of semantic RSMs against spatio-semantic ones and established retrieval",
    parameters=RetrievalParameters,
    computation=f"{__name__}.experiment:evaluate",
)
