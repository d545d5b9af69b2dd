"""The table of matchers, against scipy on the features of the run, and what cannot be judged."""

from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import InputError
from semrsm_dist.experiments.approximation.report import draw_approximation, write_text
from semrsm_dist.experiments.approximation.table import answer_windows
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.pipeline.driver import run

evaluate = partial(compute, "approximation")

GRID = {"sizes": [2, 3, 8], "tolerances": [0.01], "inner_tolerances": [0.0], "rounds": 2}


def judge(config, **parameters):
    return evaluate(config, **{**GRID, **parameters})


@pytest.fixture(scope="module")
def found(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("approximation"))
    return config, judge(config, seed=3, n_rows=3, n_columns=5)


def of_features(folder, z, **sections):
    np.save(folder / "z.npy", z)
    data = {"source": "features", "layers": {"last": str(folder / "z.npy")}}
    return parse_config({"run": str(folder / "run"), "data": data, **sections})


def select(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def value(table, **where):
    rows = select(table, **where)
    assert len(rows) == 1
    return rows["value"].iloc[0]


def assign(z_i, z_j):
    affinity = z_i @ z_j.T
    return affinity[linear_sum_assignment(affinity, maximize=True)].sum()


def in_windows(z_i, z_j, window):
    z_i, z_j = (z[np.argsort(np.linalg.norm(z, axis=1), kind="stable")] for z in (z_i, z_j))
    starts = range(0, len(z_i), window)
    return sum(assign(z_i[s : s + window], z_j[s : s + window]) for s in starts)


def greedily(z_i, z_j):
    affinity, total = z_i @ z_j.T, 0.0
    for _ in range(len(z_i)):
        i, j = np.unravel_index(affinity.argmax(), affinity.shape)
        total += affinity[i, j]
        affinity[i] = affinity[:, j] = -np.inf
    return total


@pytest.mark.parametrize("layer", ["early", "late"])
def test_quality_is_that_of_scipy_on_the_same_pairs(small, found, layer):
    config, evidence = found
    drawn = np.random.default_rng(3).permutation(14)
    z, _ = small.load(config, layer)
    pairs = [(z[r], z[c]) for r in sorted(drawn[:3]) for c in sorted(drawn[3:8])]
    optimum = np.array([assign(*pair) for pair in pairs])
    identity = np.array([np.sum(z_i * z_j) for z_i, z_j in pairs])
    norms = np.array([np.linalg.norm(z_i) * np.linalg.norm(z_j) for z_i, z_j in pairs])
    table = select(evidence.table, layer=layer)
    assert (table["n_pairs"] == 15).all()
    for where, values in (
        ({"matcher": "hungarian"}, optimum),
        ({"matcher": "identity"}, identity),
        ({"matcher": "greedy"}, [greedily(*pair) for pair in pairs]),
        ({"matcher": "batch-optimal", "size": 2}, [in_windows(*pair, 2) for pair in pairs]),
        ({"matcher": "batch-optimal", "size": 3}, [in_windows(*pair, 3) for pair in pairs]),
    ):
        shares = (np.array(values) - identity) / (optimum - identity)
        ratios = np.array(values)[optimum > 0] / optimum[optimum > 0]
        assert value(table, quantity="share of the gain", **where) == pytest.approx(shares.mean(), abs=1e-5)
        assert value(table, quantity="ratio to optimum", **where) == pytest.approx(ratios.mean(), abs=1e-5)
        loss = np.mean((optimum - values) / norms)
        assert value(table, quantity="cosine loss", **where) == pytest.approx(loss, abs=1e-5)


def test_sizes_below_s_alone_are_tried(found):
    table = found[1].table
    tried = select(table, matcher="median-split", quantity="share of the gain")
    assert tried.groupby("layer", sort=False)["size"].apply(list).to_dict() == {
        "early": [2, 3],
        "late": [2, 3],
    }
    assert set(select(table, matcher="projection", layer="late")["size"]) == {1, 2}  # of 5 channels


def test_times_are_positive_and_relative_to_the_same_run(found):
    table = found[1].table
    assert (table[table["quantity"].str.startswith(("seconds", "time"))]["value"] > 0).all()
    for layer in ("early", "late"):
        part = select(table, layer=layer)
        auction = value(part, matcher="auction", tolerance=1e-3, quantity="seconds a pair")
        for _, row in select(part, quantity="time relative to auction").iterrows():
            same = select(part, matcher=row["matcher"], quantity="seconds a pair")
            same = same[same["size"].eq(row["size"]) | (same["size"].isna() & np.isnan(row["size"]))]
            same = same[same["tolerance"].eq(row["tolerance"]) | same["tolerance"].isna()]
            assert row["value"] == pytest.approx(same["value"].iloc[0] / auction)
            assert row["low"] <= row["value"] * (1 + 1e-9) and row["value"] <= row["high"] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("keep", "auction_seconds", "best", "beaten"),
    [(0.7, 0.5, 2, 1.0), (0.7, 1.5, 2, 0.0), (0.85, 1.5, 3, 1.0), (0.95, 0.5, np.nan, np.nan)],
)
def test_the_best_window_is_the_fastest_that_keeps_enough(found, keep, auction_seconds, best, beaten):
    table = select(found[1].table, layer="early").copy()
    shares, seconds = (table["quantity"] == name for name in ("share of the gain", "seconds a pair"))
    table.loc[shares & (table["matcher"] == "auction"), "value"] = 0.9
    table.loc[seconds & (table["matcher"] == "auction"), "value"] = auction_seconds
    for size, share in ((2, 0.8), (3, 0.9)):
        table.loc[shares & (table["size"] == size), "value"] = share
        table.loc[seconds & (table["size"] == size), "value"] = float(size) - 1.0
    answers = select(answer_windows(table, keep), matcher="batch-optimal")
    np.testing.assert_equal(value(answers, quantity="best window"), best)
    np.testing.assert_equal(value(answers, quantity="best window beaten by the auction"), beaten)


def test_nothing_is_as_good_as_a_method_on_the_front_and_cheaper(found):
    table = select(found[1].table, layer="early")
    fronts, shares, seconds = (
        select(table, quantity=quantity)["value"].to_numpy()
        for quantity in ("on the front", "share of the gain", "seconds a pair")
    )
    for index in np.flatnonzero(fronts):
        assert not ((seconds < seconds[index]) & (shares.round(4) >= shares[index].round(4))).any()
    assert fronts[seconds.argmin()] == 1.0


def test_the_text_answers_and_the_figure_has_a_panel_per_layer(found, small):
    _, evidence = found
    for words in (
        "early: S = 6, C = 4, 15 pairs",
        "best window of batch-optimal (exact inside)",
        "hungarian",
    ):
        assert words in evidence.text
    figure = small.draw(evidence)
    assert [axis.get_title() for axis in figure.axes] == ["early: S = 6, C = 4", "late: S = 4, C = 5"]
    assert (evidence.settings["seed"], evidence.settings["grid"]["sizes"]) == (3, (2, 3, 8))


def test_a_matcher_of_another_distribution_is_drawn_and_listed(found):
    table = found[1].table.replace({"matcher": {"greedy": "theirs"}})
    figure = Figure()
    draw_approximation(figure, table)
    assert "theirs" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "theirs" in write_text(table, 0.95)


def test_queries_are_matched_with_the_database(small, tmp_path):
    config = small.make_config(tmp_path, n=5, n_queries=4, wanted=("late",))
    table = judge(config, n_rows=9, n_columns=9).table
    assert set(table["n_rows"]) == {4} and set(table["n_columns"]) == {5}


def test_pairs_with_nothing_to_gain_are_counted_and_left_out(tmp_path):
    z = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    z[:3] = z[:3, :1]  # constant images: every permutation is worth the same
    evidence = judge(of_features(tmp_path, z), n_rows=2, n_columns=4)
    shares = select(evidence.table, quantity="share of the gain", matcher="greedy")
    drawn = np.random.default_rng(0).permutation(6)
    undefined = sum(r < 3 or c < 3 for r in drawn[:2] for c in drawn[2:])
    assert shares["n_undefined"].tolist() == [undefined]
    assert f"left out: {undefined} pairs with nothing to gain" in evidence.text


def test_a_negative_optimum_has_no_ratio(tmp_path):
    z = np.random.default_rng(0).uniform(1, 2, size=(6, 5, 3)).astype(np.float32)
    z[::2] *= -1
    table = judge(of_features(tmp_path, z), n_rows=3, n_columns=3).table
    drawn = np.random.default_rng(0).permutation(6)
    negative = sum((r + c) % 2 for r in drawn[:3] for c in drawn[3:])
    rows = select(table, matcher="auction", quantity="ratio to optimum")
    assert set(rows["n_undefined"]) == {negative}
    assert ((rows["value"] > 0.9) & (rows["value"] <= 1.0 + 1e-9)).all()
    assert (select(table, matcher="hungarian", quantity="share of the gain")["n_undefined"] == 0).all()


def test_images_that_are_all_constant_leave_every_share_undefined(tmp_path):
    evidence = judge(of_features(tmp_path, np.ones((4, 5, 3), np.float32)), n_rows=2, n_columns=2)
    assert select(evidence.table, quantity="share of the gain")["value"].isna().all()
    evidence.draw(Figure())


def test_images_of_different_sizes_are_refused_before_anything_is_computed(tmp_path):
    z = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    np.save(tmp_path / "counts.npy", np.array([5, 5, 3, 4]))
    config = of_features(tmp_path, z, matching={"matcher": "greedy"})
    data = {**config.data.model_dump(exclude_none=True), "token_counts": {"last": tmp_path / "counts.npy"}}
    config = parse_config({**config.model_dump(exclude_none=True), "data": data})
    with pytest.raises(InputError, match="differ in their number of tokens"):
        judge(config, n_rows=2, n_columns=2)
    assert not config.run.exists()
    run(config)  # whose copy of the features is judged when they are gone
    config.data.layers["last"].unlink()
    with pytest.raises(InputError, match="differ in their number of tokens"):
        judge(config, n_rows=2, n_columns=2)
