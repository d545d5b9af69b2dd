"""The experiment `improvements`."""

from typing import Annotated

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ImprovementsParameters(Parameters):
    """Which settings of each family are tried; an empty list leaves a family out."""

    norms: Many[NotNegative] = Field(
        (0.0, 2.0), description="powers of tokens' norms, 1 for tokens as they are, 0 for unit length"
    )
    saliency: Many[NotNegative] = Field(
        (2.0,), description="powers of the norms of tokens less the data set's mean token, likewise"
    )
    whitening: Many[Share] = Field(
        (0.8,), description="shares of the variance kept by whitened tokens, and by whitened pooling"
    )
    prior: Many[PositiveReal] = Field(
        (0.1, 0.5),
        description="penalties for displacement, on the scale of cosines: 0 is free matching, infinity none",
    )
    shares: Many[Share] = Field((0.5, 0.75), description="shares of the matches to keep, the best ones")
    dustbin: Many[NotNegative] = Field(
        (0.0, 0.2, 0.4), description="cosines below which two tokens stay unmatched"
    )
    tolerance: Annotated[float, Field(ge=1e-5, le=0.1)] = Field(
        1e-3, description="how closely partial matching is certified, on the scale of cosines"
    )
    relaxation: Many[PositiveReal] = Field(
        (0.3,), description="relaxation of the marginals in unbalanced transport"
    )
    entropy: float = Field(0.1, ge=0.03, le=10, description="entropy of unbalanced transport")
    mixture: Many[Share] = Field(
        (0.25, 0.5, 0.75),
        description="weights of semantic cosines in their mean with those of average pooling",
    )
    gem: Many[Annotated[float, Field(ge=1, allow_inf_nan=False)]] = Field(
        (3.0,), description="powers of GeM pooling, with which matching is compared"
    )
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="semantic cosine in the run's first layer from which images count as near-duplicates",
    )
    resamples: Positive = Field(4000, description="bootstrap samples, over queries")


EXPERIMENT = Experiment(
    summary="what makes matching better: weights, partial matching, priors, transport, layers, against pooling",
    parameters=ImprovementsParameters,
    computation=f"{__name__}.experiment:evaluate",
)
