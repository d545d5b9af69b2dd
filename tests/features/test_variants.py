"""Pruning by magnitude: what is set to zero, and what stays."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.features.variants import prune_smallest


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 1000))
def test_pruning_sets_the_smallest_to_zero_and_keeps_the_rest(n, share, seed):
    weights = torch.randint(-4, 5, (n, 2), generator=torch.Generator().manual_seed(seed)).float() + 0.5
    pruned = weights.clone()
    prune_smallest(pruned, share)
    gone = pruned == 0
    assert gone.sum() == int(share * 2 * n)
    assert (pruned[~gone] == weights[~gone]).all()
    if gone.any() and not gone.all():
        assert weights[gone].abs().max() <= weights[~gone].abs().min()
