"""The experiment `kernels`."""

from typing import Annotated

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive


class KernelsParameters(Parameters):
    """Which widths."""

    multiples: Many[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="RBF widths, in units of the median width",
    )
    resamples: Positive = Field(
        1000, description="bootstrap samples, over queries for F1 and over images for correlations"
    )


EXPERIMENT = Experiment(
    summary="the width of the RBF kernel, and tokens normalised or centred",
    parameters=KernelsParameters,
    computation=f"{__name__}.experiment:evaluate",
)
