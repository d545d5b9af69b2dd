"""The experiment `output-similarity`."""

from typing import Literal

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Parameters, Positive
from semrsm_dist.fields import LocalPath


class OutputSimilarityParameters(Parameters):
    """Which outputs."""

    resamples: Positive = Field(300, description="bootstrap samples, over images")
    probabilities: LocalPath | None = Field(
        None,
        description="a .npy file (images, classes) in the order of the run's images, in place of the model's own",
    )
    outputs: Literal["classes", "labels"] | None = Field(
        None, description="what the model's outputs mean, where the weights do not say: classes or labels"
    )


EXPERIMENT = Experiment(
    summary="RSM entries against the divergence of the classifier's outputs, by layer and kernel",
    parameters=OutputSimilarityParameters,
    computation=f"{__name__}.experiment:evaluate",
)
