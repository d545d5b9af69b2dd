"""The bytes of a run."""

from semrsm_dist.plan.cost import feature_bytes, result_bytes


def test_bytes_are_those_of_the_arrays():
    assert feature_bytes(10, 49, 64, 2) == 10 * 49 * 64 * 2
    tiles, matrices = 3 * 8 * 45, (3 + 2 * 2) * 8 * 100
    assert result_bytes(45, 100, 2, 8) == tiles + matrices
    assert result_bytes(45, 100, None, 4) == tiles // 2
