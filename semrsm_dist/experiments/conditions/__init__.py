"""The experiment `conditions`."""

from typing import Literal, get_args

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Kernel, Many, Parameters, Positive

Factor = Literal["scale", "digits", "overlap", "displacement", "canvas", "resolution", "pair"]


class ConditionsParameters(Parameters):
    """Which conditions, and how they are judged."""

    images: int = Field(200, ge=2, description="scenes of each condition")
    layers: Many[str] | None = Field(
        None,
        min_length=1,
        description="names or globs, as in a configuration; by default an early layer and the last one of the run",
    )
    factors: Many[Factor] = Field(
        get_args(Factor), min_length=1, description="which conditions to vary; by default all"
    )
    kernel: Kernel = Field(
        "cosine", description="linear, cosine or rbf; average pooling is compared by cosine"
    )
    resamples: Positive = Field(1000, description="bootstrap samples, over queries")


EXPERIMENT = Experiment(
    summary="the gain of permutation invariance by scale, clutter, displacement and resolution of digit scenes",
    parameters=ConditionsParameters,
    computation=f"{__name__}.experiment:evaluate",
)
