"""The matchers by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from semrsm_dist.errors import ConfigError, did_you_mean
from semrsm_dist.matching.matcher import Matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.matchers.batch_optimal import BatchOptimal
from semrsm_dist.matching.matchers.greedy import Greedy
from semrsm_dist.matching.matchers.hungarian import Hungarian
from semrsm_dist.matching.matchers.identity import Identity
from semrsm_dist.matching.matchers.median_split import MedianSplit
from semrsm_dist.matching.matchers.projection import Projection
from semrsm_dist.matching.matchers.subsample import Subsample
from semrsm_dist.matching.matchers.topk_greedy import TopKGreedy

_KINDS: tuple[type[Matcher], ...] = (
    Auction,
    Hungarian,
    BatchOptimal,
    MedianSplit,
    TopKGreedy,
    Subsample,
    Projection,
    Greedy,
    Identity,
)

MATCHERS: Mapping[str, type[Matcher]] = MappingProxyType({kind.name: kind for kind in _KINDS})
"""Every matcher by its name in configurations."""


def make_matcher(name: str, **parameters: float) -> Matcher:
    """Return the matcher `name` with its parameters.

    Parameters
    ----------
    name : str
        A key of `MATCHERS`.
    **parameters
        ``tolerance`` of `auction`, ``window`` of `batch-optimal` and `median-split`, ``k`` of `topk-greedy`,
        ``sample`` and ``seed`` of `subsample`, ``channels`` and ``seed`` of `projection`.

    Raises
    ------
    ConfigError
        Unknown name, a parameter this matcher does not take, or a value it cannot use.
    """
    if name not in MATCHERS:
        raise ConfigError(
            f"unknown matcher {name!r}: known are {', '.join(MATCHERS)}{did_you_mean(name, MATCHERS)}"
        )
    kind = MATCHERS[name]
    known = [p for p in inspect.signature(kind).parameters if p not in ("args", "kwargs")]
    for parameter in parameters:
        if parameter not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise ConfigError(
                f"matcher {name!r} has no parameter {parameter!r}: it {takes}{did_you_mean(parameter, known)}"
            )
    return kind(**parameters)
