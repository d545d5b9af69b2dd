"""The experiment `layers`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from semrsm_dist.experiments.experiment import Experiment, Kernel, Many, Parameters, Positive
from semrsm_dist.fields import LocalPath

TUNED = "fine-tuned"
PRUNED = re.compile(r"pruned-(0?\.\d+)")


def _require_variants(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names) or any(name != TUNED and not PRUNED.fullmatch(name) for name in names):
        raise ValueError(
            f"a list of different variants: {TUNED}, or pruned-SHARE such as pruned-0.5 for half of the weights"
        )
    return names


class LayersParameters(Parameters):
    """What is compared with what."""

    kernel: Kernel = Field("cosine", description="linear, cosine or rbf")
    resamples: Positive = Field(200, description="bootstrap samples, over images")
    variants: Annotated[Many[str], AfterValidator(_require_variants)] | None = Field(
        None,
        description="networks to make from the run's own and to compare with it: pruned-SHARE, fine-tuned; by default "
        "some of each if the network is one that ships, else none",
    )
    images: int = Field(200, ge=2, description="largest number of digit scenes that variants are run on")
    other: LocalPath | None = Field(None, description="configuration of another run of the same images")


EXPERIMENT = Experiment(
    summary="CKA and RSA between layers, within a network and before and after pruning and fine-tuning",
    parameters=LayersParameters,
    computation=f"{__name__}.experiment:evaluate",
)
