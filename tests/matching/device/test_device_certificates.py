"""What the auction promises of any device: kernels run thread by thread on the CPU, and on a GPU where there is one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semrsm_dist.errors import LimitError
from semrsm_dist.matching.compiled.product import padded
from semrsm_dist.matching.device import source
from semrsm_dist.matching.device.certificate import choose_product, frame_pairs, rounding_of
from semrsm_dist.matching.device.forms import CAPACITIES, Form
from semrsm_dist.matching.device.solver import (
    Layout,
    Panels,
    choose_layout,
    match_pairs,
    multiply,
    send_panel,
    solve,
)
from semrsm_dist.matching.matchers import make_matcher
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.matching.result import TileResult
from tests.matching import test_unequal_tokens as unequal
from tests.matching.test_certificates import KINDS, ROUNDING, assert_promises, make, norms_of, optimum

TOLERANCES = (3e-2, 1e-3, 1e-4, 1e-5, 0.0)


def on_device(tolerance=1e-3):
    return make_matcher("auction", tolerance=tolerance, device="cuda")


def smooth(n_images, n_tokens, n_channels, seed=0):
    """Return representations whose auctions are long."""
    rng = np.random.default_rng(seed)
    z = np.cumsum(rng.normal(size=(n_images, n_tokens, n_channels)), axis=1)
    return (z + rng.normal(size=z.shape)).astype(np.float32)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.sampled_from((1, 2, 3, 9, 15, 16, 17, 31, 32, 33, 49, 65)),
    n_channels=st.sampled_from((1, 3, 16, 33, 130)),
    dtype=st.sampled_from((np.float16, np.float32, np.float64)),
    tolerance=st.sampled_from(TOLERANCES),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_promise_holds(device, kind, n_tokens, n_channels, dtype, tolerance, seed):
    z = make(kind, n_tokens, n_channels, np.random.default_rng(seed))
    if dtype is np.float16:
        z = np.clip(z, -6e4, 6e4)
    z_i, z_j = z.astype(dtype)
    assert_promises(on_device(tolerance).match(z_i, z_j), z_i, z_j, tolerance)


@pytest.mark.parametrize(
    ("kind", "n_tokens", "tolerance"),
    [("plain", 196, 1e-3), ("integers", 196, 1e-4), ("offset", 300, 1e-3), ("smooth", 784, 3e-2)],
)
def test_every_promise_holds_for_many_tokens(device, kind, n_tokens, tolerance):
    z = make(kind, n_tokens, 20, np.random.default_rng(7)).astype(np.float32)
    panel = Auction().prepare(z)
    found, is_open = solve(device, panel.part(slice(1)), panel.part(slice(1, None)), tolerance)
    assert not is_open.any()
    scale, best = norms_of(*z), optimum(*z)
    value, bound = found.matched[0, 0], found.upper_bound[0, 0]
    assert value <= best + ROUNDING * scale
    assert best - ROUNDING * scale <= bound <= value + tolerance * scale


@settings(max_examples=30)
@given(
    exponents=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    tolerance=st.sampled_from(TOLERANCES),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_promise_holds_at_any_scale(device, exponents, tolerance, seed):
    z = make("plain", 20, 5, np.random.default_rng(seed))
    z_i, z_j = (z * 10.0 ** np.array(exponents)[:, None, None]).astype(np.float32)
    assert_promises(on_device(tolerance).match(z_i, z_j), z_i, z_j, tolerance)


def test_scaling_by_powers_of_two_changes_only_the_scale(device):
    z_i, z_j = make("plain", 40, 8, np.random.default_rng(1)).astype(np.float32)
    plain = on_device().match(z_i, z_j)
    scaled = on_device().match(z_i * np.float32(2.0**90), z_j * np.float32(2.0**-60))
    np.testing.assert_array_equal(scaled.permutation, plain.permutation)
    assert scaled.value == plain.value * 2.0**30
    assert scaled.upper_bound == plain.upper_bound * 2.0**30


@settings(max_examples=60)
@given(pair=unequal.pairs, tolerance=st.sampled_from((1e-2, 1e-4, 0.0)))
def test_every_promise_holds_for_unequal_numbers_of_tokens(device, pair, tolerance):
    z_i, z_j = unequal.make(*pair)
    found = on_device(tolerance).match(z_i, z_j)
    unequal.check_permutation(found, z_i, z_j)
    scale, best = norms_of(z_i, z_j), optimum(z_i, z_j)
    assert found.value <= best + ROUNDING * scale
    assert best - ROUNDING * scale <= found.upper_bound
    assert found.gap <= max(tolerance or 1e-6, ROUNDING) * scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tile_holds_what_its_pairs_give_alone_however_it_is_cut(device, dtype, monkeypatch):
    matcher, z = on_device(), smooth(7, 70, 6).astype(dtype)
    counts = np.array([70, 33, 5, 33, 70, 33, 1])
    rows, columns = matcher.prepare(z[:3], counts[:3]), matcher.prepare(z[3:], counts[3:])
    whole = matcher.solve_tile(rows, columns)
    matcher.check_tile(whole, rows, columns)
    for r in range(3):
        for c in range(4):
            alone = matcher.match(
                z[r, : counts[r]], z[3 + c, : counts[3 + c]]
            )  # with room for no more tokens
            assert (alone.value, alone.upper_bound) == (whole.matched[r, c], whole.upper_bound[r, c])
    monkeypatch.setattr(type(device), "free_bytes", lambda self: 4 * 6 * 4 * padded(70) ** 2)
    for name, array in zip(TileResult._fields, matcher.solve_tile(rows, columns)[:3], strict=False):
        np.testing.assert_array_equal(array, getattr(whole, name))


def test_the_same_pairs_give_the_same_bytes_again(device):
    z = smooth(6, 33, 16)
    first, second = (on_device(1e-4).solve_tile(*[Auction().prepare(z)] * 2) for _ in range(2))
    for name in ("matched", "upper_bound", "identity"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


@pytest.mark.parametrize(
    "form", [Form(64, 1, 20), Form(128, 2, 128), Form(512, 8, 32)], ids=lambda form: "-".join(map(str, form))
)
@settings(max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    n_tokens=st.sampled_from((2, 9, 17, 33, 49, 64)),
    tolerance=st.sampled_from((1e-2, 1e-4, 1e-7)),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_forms_find_the_same_bytes(device, form, kind, n_tokens, tolerance, seed):
    z = make(kind, n_tokens, 20, np.random.default_rng(seed)).astype(np.float32)
    panel = Auction().prepare(z)
    rows, columns = panel.part(slice(1)), panel.part(slice(1, None))
    layout = choose_layout(rows, columns, tolerance)
    panels = Panels(*(send_panel(device, part, layout) for part in (rows, columns)), n_tokens, 20)
    tasks = frame_pairs(rows, columns, tolerance).tasks
    expected, found = (
        match_pairs(device, panels, tasks, form=one, with_permutations=True) for one in (None, form)
    )
    assert [array.tobytes() for array in found] == [array.tobytes() for array in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_bids_are_bounded(device, kind):
    """Even a gap that float32 cannot reach ends the auction after the bids allowed, with the identity and a bound."""
    z = make(kind, 18, 6, np.random.default_rng(5)).astype(np.float32)
    panel = Auction().prepare(z)
    layout = Layout("float32", double=False)
    sent = (send_panel(device, panel.part(part), layout) for part in (slice(1), slice(1, None)))
    tasks = np.array([(0, 0, 18, 1.0, 1e-25)], source.TASK)
    found = match_pairs(device, Panels(*sent, 18, 6), tasks, with_permutations=True)
    (outcome,) = found.outcomes
    assert outcome["n_bids"] <= 400 * 18 + 4
    assert outcome["finished"] or found.permutations[0, :18].tolist() == list(range(18))
    affinity = panel.packed.reshape(2, 2, 6, 16).swapaxes(2, 3).reshape(2, 32, 6)[:, :18].astype(np.float64)
    assert outcome["dual"] >= optimum(*affinity) - rounding_of("float32", 6) * norms_of(*affinity)


def test_a_triangular_tile_is_mirrored_with_squared_norms_on_its_diagonal(device):
    matcher, z = on_device(), smooth(5, 12, 4)
    panel = matcher.prepare(z)
    tile, whole = matcher.solve_tile(panel, panel, triangular=True), matcher.solve_tile(panel, panel)
    np.testing.assert_array_equal(tile.matched, tile.matched.T)
    np.testing.assert_array_equal(np.diag(tile.matched), panel.squared_norms)
    upper = np.triu_indices(5, 1)
    np.testing.assert_array_equal(tile.matched[upper], whole.matched[upper])


def test_what_a_device_leaves_open_still_holds(device):
    z = smooth(4, 30, 8)
    panel = Auction().prepare(z)
    found, is_open = solve(device, panel, panel, 1e-12)
    assert is_open[~np.eye(4, dtype=bool)].all()
    for i in range(4):
        for j in range(4):
            best, scale = optimum(z[i], z[j]), norms_of(z[i], z[j])
            assert found.matched[i, j] <= best + ROUNDING * scale
            assert found.upper_bound[i, j] >= best - ROUNDING * scale


def test_what_a_device_leaves_open_is_finished_on_the_cpu(device):
    z = smooth(4, 30, 8)
    panel = Auction().prepare(z)
    found = on_device(0.0).solve_tile(panel, panel)
    expected = Auction(tolerance=0.0).solve_tile(panel, panel)
    np.testing.assert_allclose(found.matched, expected.matched, rtol=1e-14)
    assert (found.matched >= found.identity).all()
    on_device(0.0).check_tile(found, panel, panel)


def test_images_in_float32_meet_images_in_float64(device):
    single, double = smooth(3, 21, 7), smooth(2, 21, 7, seed=1).astype(np.float64)
    matcher = on_device()
    mixed = matcher.solve_tile(matcher.prepare(single), matcher.prepare(double))
    exact = np.einsum("isc,jsc->ij", single.astype(np.float64), double)
    np.testing.assert_allclose(mixed.identity, exact, rtol=1e-12)


def test_zero_representations_have_value_and_bound_zero(device):
    z = smooth(3, 20, 4)
    z[0] = 0
    panel = on_device().prepare(z)
    tile = on_device().solve_tile(panel, panel)
    assert not tile.matched[0].any()
    assert not tile.upper_bound[:, 0].any()


def test_more_tokens_than_a_program_is_compiled_for_are_refused(device):
    panel = Auction().prepare(np.ones((1, CAPACITIES[-1] + 1, 1), np.float32))
    with pytest.raises(LimitError, match=r"up to 4096 tokens, found room for 4097"):
        on_device().solve_tile(panel, panel)


def product_of(device, left, right, product):
    """Return the affinities of all tokens of two panels, and the largest error of each that is allowed for."""
    sent = (send_panel(device, panel, Layout(product, double=False)) for panel in (left, right))
    panel = multiply(device, *sent, padded(left.n_tokens), left.n_channels)
    a, b = (
        part.packed.reshape(-1, part.n_channels, 16)
        .swapaxes(1, 2)
        .reshape(-1, part.n_channels)
        .astype(np.float64)
        for part in (left, right)
    )
    found = device.fetch(panel, (len(a), len(b)), np.float32)
    lengths = np.outer(*(np.linalg.norm(x, axis=1) for x in (a, b)))
    return found, a @ b.T, rounding_of(product, left.n_channels) * lengths + 2.0**-140


@pytest.fixture
def tensor_core(device):
    """A function that lets tensor cores round as given, where they are emulated: see `cuda_on_cpu.h`."""
    emulated = type(device).__name__ == "EmulatedDevice"
    yield device.program().round_tensor_sums if emulated else lambda *_: None
    if emulated:
        device.program().round_tensor_sums(8, 0, 0)


@pytest.mark.parametrize("product", ["float32", "halves"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_channels=st.sampled_from((1, 2, 15, 16, 17, 31, 32, 33, 100, 300)),
    shapes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 3)),
    spread=st.sampled_from(("channels", "tokens", "none", "equal")),
    rounding=st.tuples(st.sampled_from((1, 2, 4, 8, 16)), st.integers(0, 2), st.integers(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_product_is_as_exact_as_its_bound_says(
    device, tensor_core, product, n_channels, shapes, spread, rounding, seed
):
    n_left, n_tokens, n_right = shapes
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_left + n_right, n_tokens, n_channels))
    if spread == "channels":
        z *= 10.0 ** rng.integers(-6, 6, n_channels)
    elif spread == "tokens":  # some of which vanish beside others
        z *= 10.0 ** rng.integers(-40, 0, (1, n_tokens, 1))
    elif spread == "equal":  # affinities of all signs, of which all terms have the same
        z = np.sign(rng.normal(size=(n_left + n_right, n_tokens, 1))) * np.abs(z[:1, :1])
    panel = Auction().prepare(z)
    tensor_core(*rounding)
    found, exact, allowed = product_of(
        device, panel.part(slice(n_left)), panel.part(slice(n_left, None)), product
    )
    assert (np.abs(found - exact) <= allowed).all()


def test_the_worst_roundings_of_tensor_cores_come_near_to_their_bound(device, tensor_core):
    """A bound that were never approached might rest on an emulation that is too good."""
    if type(device).__name__ != "EmulatedDevice":
        pytest.skip("a GPU rounds better")
    signs = np.array([-1, 1])[:, None]
    token = np.tile(
        [1.0] + 15 * [2.0**-13], 10
    )  # in each sum, one large product, and small ones below its last digit
    panel = Auction().prepare((signs * token)[None])
    tensor_core(1, 1, 0)
    found, exact, allowed = product_of(device, panel, panel, "halves")
    share = (np.abs(found - exact) / allowed)[:2, :2].max()
    assert 0.2 < share <= 1


def test_numbers_that_half_precision_cannot_hold_make_the_product_no_worse(device):
    """Of all sizes that float32 has, side by side: the largest become halves, the smallest vanish beside them."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 20, 50)) * 2.0 ** rng.integers(-120, 100, (2, 20, 50))
    z[:, 3] = 0
    panel = Auction().prepare(z)
    found, exact, allowed = product_of(device, panel.part(slice(1)), panel.part(slice(1, None)), "halves")
    assert (np.abs(found - exact) <= allowed).all()


def test_an_affinity_on_tensor_cores_depends_on_its_two_tokens_alone(device):
    z = smooth(6, 33, 40)
    z[4:] = z[:2]
    panel = Auction().prepare(z)
    found, _, _ = product_of(device, panel, panel, "halves")
    found = found.reshape(6, 48, 6, 48)
    np.testing.assert_array_equal(found[4:], found[:2])
    np.testing.assert_array_equal(found[:, :, 4:], found[:, :, :2])


@pytest.mark.parametrize(
    ("n_channels", "tolerance", "product"),
    [
        (256, 1e-4, "halves"),
        (768, 1e-4, "halves"),
        (2048, 1e-4, "float32"),
        (256, 1e-5, "float32"),
        (3, 0.0, "float32"),
    ],
)
def test_the_product_depends_on_channels_and_tolerance_alone(n_channels, tolerance, product):
    assert choose_product(n_channels, tolerance) == product


def test_tensor_cores_leave_no_pair_open_at_the_finest_tolerance_they_are_used_for(device):
    panel = Auction().prepare(smooth(2, 49, 768))
    _, is_open = solve(device, panel, panel, 1e-4)
    assert not is_open[~np.eye(2, dtype=bool)].any()


def test_the_slack_is_no_larger_than_the_roundings_it_covers():
    """A bound that were far too large would be true, and leave everything to the CPU."""
    panel = Auction().prepare(smooth(2, 49, 512))
    tasks, frames = frame_pairs(panel, panel, 1e-4)
    assert tasks.size == frames.size == 4
    assert (frames["slack"] <= 1e-5 * tasks["size"]).all()
    assert np.isfinite(tasks["target"]).all()


def test_wanted_pairs_alone_are_sent_and_the_hardest_come_about_first():
    rng = np.random.default_rng(0)
    panel = Auction().prepare(smooth(30, 9, 4) + 10 * rng.exponential(size=(30, 1, 1)))
    wanted = np.triu(np.ones((30, 30), np.bool_), 1)
    tasks, _ = frame_pairs(panel, panel, 1e-3, wanted)
    assert sorted(zip(tasks["row"], tasks["column"], strict=True)) == list(
        zip(*np.nonzero(wanted), strict=True)
    )
    ease = tasks["target"] / tasks["size"]
    assert ease.max() > 4 * ease.min()
    assert (np.maximum.accumulate(ease) < 1.25 * ease).all()


@pytest.mark.gpu
def test_ten_thousand_pairs_are_certified_and_agree_with_scipy(device, request):
    if "emulated" in request.node.name:
        pytest.skip("takes minutes")
    z = smooth(100, 49, 64)
    panel = Auction().prepare(z)
    found, is_open = solve(device, panel, panel, 1e-3)
    assert not is_open.any()
    for i in range(100):
        for j in range(100):
            best, scale = optimum(z[i], z[j]), norms_of(z[i], z[j])
            assert best - 1e-3 * scale <= found.matched[i, j] <= best + ROUNDING * scale
            assert best - ROUNDING * scale <= found.upper_bound[i, j]
