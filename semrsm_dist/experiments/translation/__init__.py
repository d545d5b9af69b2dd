"""The experiment `translation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from semrsm_dist.data.sources.crops import SHARE, largest_shift
from semrsm_dist.experiments.experiment import Experiment, Many, Parameters, Positive


class TranslationParameters(Parameters):
    """Which crops."""

    images: int = Field(80, ge=2, description="how many of the run's images to take, drawn at random")
    shifts: Many[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        (0.0, 1 / 32, 1 / 16, 1 / 8, 3 / 16, 1 / 4, 5 / 16),
        min_length=1,
        description="how far down the second crop lies, as shares of the crop's side",
    )
    share: float = Field(
        SHARE, gt=0, le=1, description="side of the crops, as a share of the image's shorter side"
    )
    resamples: Positive = Field(1000, description="bootstrap samples, over images")

    @model_validator(mode="after")
    def _require_room(self) -> TranslationParameters:
        if max(self.shifts) > largest_shift(self.share) + 1e-9:
            raise ValueError(
                f"shifts: {', '.join(map(str, self.shifts))} with share {self.share}: a crop can be moved by at most "
                f"(1 - share) / share = {largest_shift(self.share):.4g} of its side; take smaller shifts or a smaller "
                "share"
            )
        return self


EXPERIMENT = Experiment(
    summary="similarity of shifted crops of the same and of different images, by layer and shift",
    parameters=TranslationParameters,
    computation=f"{__name__}.experiment:evaluate",
)
