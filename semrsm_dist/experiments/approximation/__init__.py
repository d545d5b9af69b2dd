"""The experiment `approximation`."""

from typing import Annotated

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive

Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]

REFERENCE = 1e-3
"""Tolerance of the auction that times are compared with: its default."""


class ApproximationParameters(Parameters):
    """Which settings of the matchers are tried, on how many pairs."""

    n_rows: Positive = Field(5, description="images on one side of the pairs that are matched and timed")
    n_columns: Positive = Field(16, description="images on the other side")
    rounds: Positive = Field(
        2, description="how often each matcher is timed, slow ones once; the fastest counts"
    )
    keep: float = Field(
        0.95, gt=0, le=1, description="share of the gain over no matching that the best window must keep"
    )
    tolerances: Many[Tolerance] = Field(
        (1e-1, 3e-2, 1e-2, REFERENCE, 0.0), description="tolerances of the auction"
    )
    inner_tolerances: Many[Tolerance] = Field(
        (0.0, REFERENCE),
        description="tolerances within windows, samples and projections; 0 is exact, as in the paper",
    )
    sizes: Many[Positive] = Field(
        (8, 16, 32, 64, 128, 256, 512),
        description="sizes of windows and samples, and values of k; those below S are used",
    )


EXPERIMENT = Experiment(
    summary="run time and quality of every matcher, and which window is best at which number of tokens",
    parameters=ApproximationParameters,
    computation=f"{__name__}.experiment:evaluate",
)
