"""Changes to matching against their definitions, and that nothing is tuned on what is reported."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.pooling import Whitening
from semrsm_dist.evaluation.regression import holm
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.improvements import ImprovementsParameters
from semrsm_dist.experiments.improvements.experiment import _difference, choose_half
from semrsm_dist.experiments.improvements.partial import score_partially
from semrsm_dist.experiments.improvements.treatments import (
    Treatment,
    add_places,
    centre,
    grid_of,
    match_treated,
    note_grid,
    weigh,
    whiten_tokens,
)
from semrsm_dist.experiments.pair_scores import Tokens
from semrsm_dist.matching.matchers import make_matcher

evaluate = partial(compute, "improvements")
HUNGARIAN = make_matcher("hungarian")


def make_tokens(n_images, n_tokens=9, seed=0, n_channels=4):
    z = np.random.default_rng(seed).normal(size=(n_images, n_tokens, n_channels)).astype(np.float32)
    return Tokens(z + np.float32(0.5), np.full(n_images, n_tokens))


def best(affinity):
    rows, columns = linear_sum_assignment(affinity, maximize=True)
    return columns, affinity[rows, columns].sum()


def test_weights_raise_norms_to_a_power():
    z = make_tokens(2).z
    z[0, 3] = 0
    norms = np.linalg.norm(z, axis=2)
    for power in (0.0, 0.5, 2.0):
        expected = np.where(norms > 0, norms**power, 0)
        np.testing.assert_allclose(np.linalg.norm(weigh(z, power), axis=2), expected, rtol=1e-5)
    np.testing.assert_allclose(weigh(z, 1.0), z, rtol=1e-5)


def test_centring_leaves_padding_alone():
    z = make_tokens(2).z
    z[1, 7:] = 0
    mean = np.arange(4.0)
    centred = centre(Tokens(z, np.array([9, 7])), mean)
    np.testing.assert_allclose(centred[0], z[0] - mean, rtol=1e-5)
    assert not centred[1, 7:].any()


def test_whitened_tokens_are_those_of_the_fit_and_zeros_stay():
    z = make_tokens(30).z
    whiten = Whitening(z.reshape(-1, 4), variance=1.0)
    z[3, 2] = 0
    found = whiten_tokens(z, whiten)
    np.testing.assert_allclose(found[5], whiten(z[5]), rtol=1e-5)
    assert not found[3, 2].any()


@pytest.mark.parametrize(("penalty", "grid"), [(0.1, (3, 3)), (1.0, (3, 3)), (1e4, (3, 3)), (1.0, (1, 9))])
def test_a_spatial_prior_is_the_cosine_less_a_penalty_for_displacement(penalty, grid):
    left, right = (make_tokens(1, seed=seed).z[0].astype(float) for seed in (0, 1))
    cosine = left @ right.T / np.linalg.norm(left) / np.linalg.norm(right)
    places = np.array([(y, x) for y in range(grid[0]) for x in range(grid[1])], float)
    places -= places.mean(axis=0)
    places /= np.linalg.norm(places)
    displacement = np.sum((places[:, None] - places) ** 2, axis=2)
    columns, expected = best(cosine - penalty / 2 * displacement)
    augmented = [
        add_places(z[None].astype(np.float32), penalty, grid)[0].astype(float) for z in (left, right)
    ]
    found, value = best(augmented[0] @ augmented[1].T)
    assert value - penalty == pytest.approx(expected, abs=1e-6 * (1 + penalty))
    if penalty > 100:
        np.testing.assert_array_equal(found, np.arange(9))
        assert cosine[np.arange(9), columns].sum() == pytest.approx(np.trace(cosine))


@pytest.mark.parametrize(
    ("size", "n_tokens", "grid"),
    [
        ((224, 224), 49, (7, 7)),
        ((112, 448), 196, (7, 28)),
        ((224, 224), 10, None),
        (None, 9, (3, 3)),
        (None, 8, None),
    ],
)
def test_places_are_those_on_the_grid_of_the_input(size, n_tokens, grid):
    model = None if size is None else SimpleNamespace(facts={"preprocessing": {"input_size": [3, *size]}})
    run = SimpleNamespace(record=SimpleNamespace(cached=SimpleNamespace(model=model)))
    features = SimpleNamespace(run=run, n_tokens=n_tokens, layer="a", has_unequal_tokens=lambda: False)
    assert grid_of(features) == grid
    assert ("not known" in note_grid(features)) == (grid is None)
    assert ("3 x 3" in note_grid(features)) == (size is None and grid is not None)


def test_one_query_decides_nothing():
    found = _difference(np.array([np.nan, 0.5]), resamples=50, seed=0)
    assert (found["value"], found["n"]) == (0.5, 1)
    assert np.isnan([found["low"], found["high"], found["p"]]).all()


def test_an_image_of_zeros_has_no_similarity_with_a_prior_either():
    z = make_tokens(2).z
    z[1] = 0
    solve = match_treated(Treatment("", "", lambda z: add_places(z, 1.0, (3, 3))), HUNGARIAN)
    cosine = solve(Tokens(z, np.full(2, 9)), Tokens(z, np.full(2, 9)))["cosine"].forward
    assert np.isnan(cosine).tolist() == [[False, True], [True, True]]


def test_treated_tokens_are_matched_with_a_certificate():
    left, right = make_tokens(2), make_tokens(3, seed=1)
    treatment = Treatment("", "", lambda z: weigh(z, 2.0))
    found = match_treated(treatment, make_matcher("auction", tolerance=0.05))(left, right)
    for i, one in enumerate(weigh(left.z, 2.0).astype(float)):
        for j, other in enumerate(weigh(right.z, 2.0).astype(float)):
            optimum = best(one @ other.T)[1] / np.linalg.norm(one) / np.linalg.norm(other)
            value, gap = found["cosine"].forward[i, j], found["gap"].forward[i, j]
            assert value - 1e-6 <= optimum <= value + gap + 1e-6 and gap <= 0.05 + 1e-6


def test_only_good_matches_of_centred_tokens_count():
    left, right = make_tokens(2), make_tokens(3, seed=1)
    mean = np.full(4, 0.5)
    parameters = ImprovementsParameters(shares=[0.5, 1.0], dustbin=[0.0, 0.5], tolerance=1e-5)
    found = score_partially(parameters, mean)(left, right)
    for i, one in enumerate(left.z.astype(float) - mean):
        for j, other in enumerate(right.z.astype(float) - mean):
            scale = np.linalg.norm(one) * np.linalg.norm(other)
            columns, _ = best(one @ other.T)
            products = np.sum(one * other[columns], axis=1)
            lengths = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
            expected = {
                "best share 0.5": np.sort(products)[-5:].sum(),
                "best share 1": products.sum(),
                "dustbin 0": best(np.maximum(one @ other.T, 0))[1],
                "dustbin 0.5": best(np.maximum(one @ other.T - 0.5 * lengths, 0))[1],
            }
            for name, value in expected.items():
                assert found[name].forward[i, j] == pytest.approx(value / scale, abs=1e-4), name
                assert found[f"{name} gap"].backward[j, i] < (1.0 if name == "best share 0.5" else 1e-4)


def test_halves_depend_on_names_alone():
    names = [f"image-{index}" for index in range(400)]
    half = choose_half(names)
    assert 160 < half.sum() < 240
    np.testing.assert_array_equal(choose_half(names[::-1]), half[::-1])


SETTINGS = {
    "norms": [0.0],
    "saliency": [2.0],
    "whitening": [0.9],
    "prior": [0.5],
    "shares": [0.5],
    "dustbin": [0.0, 0.2],
    "relaxation": [1.0],
    "mixture": [0.5],
    "resamples": 100,
}


@pytest.fixture(scope="module")
def tried(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("improvements"), n=24, groups=True)
    return config, evaluate(config, **SETTINGS)


def test_each_family_is_reported_on_the_queries_that_did_not_choose_its_setting(small, tried):
    config, evidence = tried
    z, labels = small.load(config, "late")[0], small.load_labels(config.data)
    groups = list(pd.read_parquet(config.data.table)["group"])
    chooses = choose_half([f"images{i}" if pd.isna(group) else group for i, group in enumerate(groups)])
    scores = small.retrieval(small.similarities(z, z, "semantic", "cosine"), labels, labels, 1, groups)
    rows = evidence.table[(evidence.table["layer"] == "late") & (evidence.table["family"] == "semantic")]
    rows = rows[rows["against"].isna()].set_index("quantity")
    assert rows.loc["F1@1 of the half that chooses", "value"] == pytest.approx(scores[chooses].mean())
    assert rows.loc["F1@1 of the other half", "value"] == pytest.approx(scores[~chooses].mean())
    assert rows["n"].tolist() == [chooses.sum(), (~chooses).sum()]


def test_the_chosen_setting_is_the_best_of_the_half_that_chooses(tried):
    table = tried[1].table
    chosen = table[(table["quantity"] == "F1@1 of the other half") & table["against"].isna()]
    every = table[table["quantity"] == "F1@1 of the half that chooses"]
    for row in chosen.itertuples():
        family = every[(every["layer"] == row.layer) & (every["family"] == row.family)]
        assert row.setting == family.loc[family["value"].idxmax(), "setting"]
    families = set(chosen[chosen["layer"] == "late"]["family"])  # 4 tokens on a square grid
    assert families - set(chosen[chosen["layer"] == "early"]["family"]) == {"spatial prior"}
    assert set(chosen[chosen["layer"] == "all layers"]["family"]) == {
        "spatio-semantic",
        "semantic",
        "pooling",
    }


def test_p_values_are_adjusted_and_gaps_certified(tried):
    table = tried[1].table
    for against in ("semantic", "pooling"):
        rows = table[table["against"] == against]
        np.testing.assert_allclose(rows["p_holm"], holm(rows["p"]))
    certified = table[table["family"].isin(["norm weights", "saliency", "spatial prior"])]
    assert certified["gap"].between(0, 1e-5).all()
    assert "better than pooling for sure" in tried[1].text


def test_what_is_computed_is_kept(tried):
    config, evidence = tried
    root = config.run / "evaluation" / "improvements"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("c/*/*")}
    pd.testing.assert_frame_equal(evaluate(config, **SETTINGS).table, evidence.table)
    assert before and before == {path: path.stat().st_mtime_ns for path in root.rglob("c/*/*")}


def test_the_figure_has_all_families(small, tried):
    (axes,) = small.draw(tried[1]).axes
    assert {"semantic", "pooling", "dustbin"} <= set(axes.get_legend_handles_labels()[1])


def test_images_may_differ_in_their_number_of_tokens(small, tmp_path):
    config, _ = small.with_unequal_tokens(small.make_config(tmp_path, n=14, wanted=["early"]), tmp_path)
    table = evaluate(config, **SETTINGS).table
    assert "spatial prior" not in set(table["family"])
    matched = table[table["family"].isin(["dustbin", "norm weights", "unbalanced transport"])]
    assert matched["value"].notna().all()


def test_too_few_queries_are_refused(small, tmp_path):
    config = small.make_config(tmp_path, n=3, wanted=["late"], labels=[["a"], [], ["a"]])
    with pytest.raises(InputError, match="one half has none that can be judged"):
        evaluate(config, **SETTINGS)
