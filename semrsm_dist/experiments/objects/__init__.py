"""The experiment `objects`."""

from pydantic import Field

from semrsm_dist.experiments.experiment import Experiment, Kernel, Parameters, Positive
from semrsm_dist.fields import LocalPath


class ObjectsParameters(Parameters):
    """Where the objects are, and how the gain is judged."""

    boxes: LocalPath | None = Field(
        None,
        description="a table (.csv or .parquet) of the boxes around the objects, needed where the run's own source of "
        "images knows none. Columns image_id, and x0, y0, x1, y1 as shares of the image's width and height",
    )
    kernel: Kernel = Field(
        "cosine", description="linear, cosine or rbf; average pooling is compared by cosine"
    )
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="semantic cosine in the run's first layer from which images count as near-duplicates: no "
        "hits, and resampled together",
    )
    resamples: Positive = Field(
        4000, description="bootstrap samples, over queries or groups of near-duplicates"
    )


EXPERIMENT = Experiment(
    summary="the gain of matching against size, number, centredness and clutter of the objects in real images",
    parameters=ObjectsParameters,
    computation=f"{__name__}.experiment:evaluate",
)
