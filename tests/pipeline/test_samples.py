"""The images of trials: from all over a run's own, and none twice."""

from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.pipeline.forecast.samples import spread


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 9))
def test_samples_are_different_images_from_all_over(total, wanted, seed):
    chosen = spread(total, wanted, seed)
    assert len(chosen) == min(total, wanted)
    assert chosen == sorted(set(chosen))
    for part, index in enumerate(chosen):
        assert part * total // len(chosen) <= index < (part + 1) * total // len(chosen)
