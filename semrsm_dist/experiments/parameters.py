"""What the experiments can be told, and the check that it is what they take.

Everything is checked before an experiment begins: a wrong word must not end hours of matching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import MappingProxyType
from typing import Any

from semrsm_dist.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an experiment.

    Attributes
    ----------
    kind
        `int`, `float` or `str`.
    about
        What it is, in a line.
    many
        It is a list; one value alone counts as a list of one.
    least, most
        The smallest and the largest number allowed.
    above
        A number that is too small itself.
    """

    kind: type[int] | type[float] | type[str]
    about: str
    many: bool = False
    least: int | None = None
    most: int | None = None
    above: int | None = None

    def check(self, value: Any) -> Any:
        """Return the value, a single one of many as a tuple; raise ValueError saying what is expected."""
        if not self.many:
            return self._check_one(value)
        if isinstance(value, (str, Path, Real)):
            return (self._check_one(value),)
        try:
            return tuple(self._check_one(item) for item in value)
        except TypeError:
            raise ValueError(self.expected) from None

    @property
    def expected(self) -> str:
        """Words for what values it takes."""
        noun = {int: "whole number", float: "number", str: "text"}[self.kind]
        limits = {"of at least": self.least, "above": self.above, "of at most": self.most}
        told = " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)
        return f"a list of {noun}s {told}".rstrip() if self.many else f"a {noun} {told}".rstrip()

    def _check_one(self, value: Any) -> Any:
        kinds: dict[type, tuple[type, ...]] = {int: (Integral,), float: (Real,), str: (str, Path)}
        if not isinstance(value, kinds[self.kind]) or isinstance(value, bool) or not self._is_within(value):
            raise ValueError(self.expected)
        if isinstance(value, (int, float, str, Path)):
            return value
        kind: Any = self.kind  # NumPy's numbers are none of these, and JSON does not know them
        return kind(value)

    def _is_within(self, value: Any) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )


SEED = Parameter(int, "of the bootstrap, and of whatever else is drawn by chance", least=0, most=2**32 - 1)
RESAMPLES = Parameter(int, "of the bootstrap", least=1)
KERNEL = Parameter(str, "linear, cosine or rbf")

PARAMETERS: Mapping[str, Mapping[str, Parameter]] = MappingProxyType(
    {
        "retrieval": {
            "seed": SEED,
            "k": Parameter(int, "hits per query, one score each", many=True, least=1),
            "variance": Parameter(
                float, "share of the variance that PCA keeps before whitening", above=0, most=1
            ),
            "centroids": Parameter(int, "of VLAD", least=1),
            "resamples": RESAMPLES,
            "search": Parameter(str, "matrix, or progressive: from the features, solving few pairs"),
        },
        "kernels": {
            "seed": SEED,
            "multiples": Parameter(float, "RBF widths, in units of the median width", many=True),
            "resamples": RESAMPLES,
        },
        "translation": {
            "seed": SEED,
            "images": Parameter(int, "how many of the run's to take"),
            "shifts": Parameter(float, "of the second crop, as shares of the crop's side", many=True),
            "share": Parameter(float, "side of the crops, as a share of the image's shorter side"),
            "resamples": RESAMPLES,
        },
        "conditions": {
            "seed": SEED,
            "images": Parameter(int, "scenes of each condition"),
            "layers": Parameter(
                str, "as in a configuration; an early and the last one by default", many=True
            ),
            "factors": Parameter(str, "which conditions to vary; all by default", many=True),
            "kernel": KERNEL,
            "resamples": RESAMPLES,
        },
        "output-similarity": {
            "seed": SEED,
            "resamples": RESAMPLES,
            "probabilities": Parameter(str, "a .npy file (images, classes) in place of the model's own"),
            "outputs": Parameter(str, "classes or labels, where the weights do not say"),
        },
        "layers": {
            "seed": SEED,
            "kernel": KERNEL,
            "resamples": RESAMPLES,
            "variants": Parameter(str, "networks to make and compare: pruned-SHARE, fine-tuned", many=True),
            "images": Parameter(int, "scenes that variants are run on, at most", least=2),
            "other": Parameter(str, "configuration of another run of the same images"),
        },
        "approximation": {
            "seed": SEED,
            "n_rows": Parameter(int, "so many images ..."),
            "n_columns": Parameter(int, "... are matched with so many others"),
            "rounds": Parameter(int, "how often each matcher is timed"),
            "keep": Parameter(float, "share of the gain that the best window must keep"),
            "tolerances": Parameter(float, "of the auction", many=True),
            "inner_tolerances": Parameter(float, "within windows, samples and projections", many=True),
            "sizes": Parameter(int, "windows, k and samples", many=True, least=1),
        },
    }
)
"""The parameters of every experiment; each has a default."""


def check_parameters(experiment: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given parameters as the experiment takes them; None stands for the default and is left out.

    Raises
    ------
    ConfigError
        If there is no such parameter, or its value is of another kind.
    """
    known = PARAMETERS[experiment]
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(
                f"experiment {experiment!r} has no parameter {name!r}: it takes {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
        if value is None:
            continue
        try:
            checked[name] = known[name].check(value)
        except ValueError as error:
            raise ConfigError(
                f"experiment {experiment!r}: {name} is {value!r}, but it must be {error} ({known[name].about}); "
                "nothing was computed"
            ) from None
    return checked
