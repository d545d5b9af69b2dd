"""What contradicts itself in a tile is found, named and counted, as formulas over whole arrays find it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import InputError
from semrsm_dist.matching.consistency import FAULTS, ROUNDING, find_fault
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.panel import prepare_packed_panel

Z = np.random.default_rng(0).normal(size=(4, 5, 3))
NUMBERS = st.sampled_from([np.nan, np.inf, -np.inf, -1e3, -1.0, 0.0, 1.0, 1e3])


def expected(tile, panel, tolerance):
    """Return the first kind of fault, in the order of `FAULTS`, and how many pairs have it and none before it."""
    norms = np.sqrt(np.outer(panel.squared_norms, panel.squared_norms))
    slack, equal = ROUNDING * norms, panel.token_counts[:, None] == panel.token_counts
    matched, bound, own = tile.matched, tile.upper_bound, tile.identity
    limit = norms + slack if tolerance is None else matched + tolerance * norms + slack
    wrong = [
        ~np.isfinite(bound),
        ~(np.abs(matched) <= norms + slack),
        matched > bound + slack,
        ~equal & ~np.isnan(own),
        equal & ~(np.abs(own) <= norms + slack),
        equal & (own > bound + slack),
        bound > limit,
    ]
    before = np.zeros(norms.shape, bool)
    for kind, mask in zip(FAULTS, wrong, strict=False):
        if mask.any():
            return kind.format(limit="norms" if tolerance is None else "tolerance"), int(
                (mask & ~before).sum()
            )
        before |= mask
    return None


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15), NUMBERS), min_size=1, max_size=6),
    st.sampled_from([None, 0.0, 1e-3]),
)
def test_faults_are_those_of_the_formulas(changes, tolerance):
    matcher = make_matcher("hungarian")
    panel = matcher.prepare(Z, [5, 3, 5, 5])
    tile = matcher.solve_tile(panel, panel)
    assert find_fault(tile, panel, panel, tolerance) is None
    for array, place, number in changes:
        tile[array].flat[place] = number
    found, fault = find_fault(tile, panel, panel, tolerance), expected(tile, panel, tolerance)
    if fault is not None:
        assert found.startswith(f"{fault[0]}, for {fault[1]} of 16 pairs")
    else:  # only the sample can have found a value that is wrong, and yet possible
        assert found is None or found.startswith(FAULTS[-1])


def test_an_image_is_prepared_alike_whatever_is_beside_it():
    rng = np.random.default_rng(1)
    z, counts = rng.normal(size=(90, 16, 64)).astype(np.float32), rng.integers(14, 17, 90)
    whole = prepare_packed_panel(z, counts)
    for image in (0, 40, 89):
        part, alone = whole.part(slice(image, image + 1)), prepare_packed_panel(z[[image]], counts[[image]])
        for name in type(alone).__dataclass_fields__:
            assert getattr(part, name).tobytes() == getattr(alone, name).tobytes(), name


def test_the_image_that_cannot_be_prepared_is_named():
    z = np.ones((90, 16, 64), np.float32)
    z[77, 3, 5] = np.inf
    with pytest.raises(InputError, match="image 77 holds 1 NaN or infinite values"):
        prepare_packed_panel(z)
