"""The experiment on kernels against the definitions, on small runs of real matching."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from semrsm_dist.errors import InputError
from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.kernels.report import CHANGE, CORRELATION, F1, GAIN, GAP, NEAR_ONE, NEAR_ZERO
from semrsm_dist.experiments.kernels.token_variants import (
    AS_THEY_ARE,
    CENTRED,
    CENTRED_EACH,
    CENTRED_UNIT,
    UNIT,
    read_variant,
)
from semrsm_dist.results.run import Run

evaluate = partial(compute, "kernels")

MULTIPLES = [0.125, 1.0, 8.0]
OPTIONS = {"resamples": 30, "multiples": MULTIPLES}
KINDS = ("semantic", "spatio-semantic")


def treat(small, queries, database, tokens):
    """Return the representations of a variant, written from its name."""
    mean = database.mean(axis=(0, 1))
    if tokens == AS_THEY_ARE:
        found = queries, database
    elif tokens == CENTRED:
        found = queries - mean, database - mean
    elif tokens == CENTRED_EACH:
        found = tuple(z - z.mean(axis=1, keepdims=True) for z in (queries, database))
    elif tokens == UNIT:
        found = small.unit(queries), small.unit(database)
    else:
        found = small.unit(queries - mean), small.unit(database - mean)
    return found if queries is not database else (found[0], found[0])


@pytest.fixture(scope="module")
def square(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("square"), wanted=["late"], n=12)
    return config, evaluate(config, seed=2, **OPTIONS)


@pytest.fixture(scope="module")
def rectangle(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("rectangle"), wanted=["late"], n=9, n_queries=6)
    return config, evaluate(config, seed=2, **OPTIONS)


def expected_correlation(small, matrix, labels, others, same):
    overlaps = np.array([[small.overlap(one, other) for other in others] for one in labels])
    chosen = np.triu(np.ones(matrix.shape, dtype=bool), k=1) if same else np.ones(matrix.shape, dtype=bool)
    return np.corrcoef(matrix[chosen], overlaps[chosen])[0, 1]


@pytest.mark.parametrize("shape", ["square", "rectangle"])
def test_every_value_of_treated_tokens_is_that_of_treating_and_matching_them(small, request, shape):
    config, evidence = request.getfixturevalue(shape)
    same = shape == "square"
    labels = small.load_labels(config.data if same else config.queries)
    others = small.load_labels(config.data)
    treated, before = set(), {}
    for tokens in (AS_THEY_ARE, CENTRED, CENTRED_EACH, UNIT, CENTRED_UNIT):
        z, y = treat(small, *small.load(config, "late"), tokens)
        part = evidence.table[(evidence.table["tokens"] == tokens) & (evidence.table["multiple"].isna())]
        for kernel in ("linear", "cosine", "rbf"):
            rows = part[part["kernel"] == kernel].set_index(["quantity", "kind"])
            scores = {}
            for kind in KINDS:
                matrix = small.similarities(z, y, kind, kernel)
                scores[kind] = small.retrieval(matrix, labels, others, 1, same=same)
                assert rows.loc[(F1, kind), "value"] == pytest.approx(scores[kind].mean())
                if (CORRELATION, kind) in rows.index:
                    expected = expected_correlation(small, matrix, labels, others, same)
                    assert rows.loc[(CORRELATION, kind), "value"] == pytest.approx(expected, abs=1e-5)
                    treated.add((tokens, kernel))
                if tokens == AS_THEY_ARE:
                    before[kernel, kind] = scores[kind]
                else:
                    change = mean_interval(scores[kind] - before[kernel, kind], resamples=30, seed=2)
                    told = rows.loc[(CHANGE, kind)]
                    assert (told["value"], told["low"], told["high"]) == pytest.approx(
                        (change.estimate, change.low, change.high)
                    )
            gain = mean_interval(scores["semantic"] - scores["spatio-semantic"], resamples=30, seed=2)
            told = rows.loc[(GAIN, "semantic less spatio-semantic")]
            assert (told["value"], told["low"], told["high"]) == pytest.approx(
                (gain.estimate, gain.low, gain.high)
            )
    assert len(treated) == 5 * 3 - 1  # RBF of tokens as they are is in the sweep


def test_every_value_of_the_sweep_is_that_of_its_width(small, square):
    config, evidence = square
    z, y = small.load(config, "late")
    labels = small.load_labels(config.data)
    sweep = evidence.table[evidence.table["multiple"].notna()]
    assert len(sweep) == len(MULTIPLES) * len(KINDS) * 3
    pairs = np.triu_indices(len(z), k=1)
    for row in sweep.itertuples():
        matrix = small.similarities(z, y, row.kind, "rbf", row.multiple)
        expected = {
            CORRELATION: expected_correlation(small, matrix, labels, labels, same=True),
            NEAR_ZERO: np.mean(matrix[pairs] < 0.01),
            NEAR_ONE: np.mean(matrix[pairs] > 0.99),
        }[row.quantity]
        assert row.value == pytest.approx(expected, abs=1e-5)
        assert row.n == len(pairs[0])
    ends = sweep[sweep["quantity"] == NEAR_ZERO].groupby("multiple")["value"].mean()
    assert ends[0.125] > 0.5 > ends[8.0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_width_changes_the_order_of_the_hits(square, kind):
    config, _ = square
    variant = read_variant(Run(config.run), "late", AS_THEY_ARE)
    orders = [
        np.argsort(-variant.rows("rbf", kind, sigma)(slice(0, 12)), axis=1, kind="stable")
        for sigma in (0.5 * variant.median_width(kind), variant.median_width(kind), 50.0)
    ]
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])


def test_the_width_is_the_one_of_the_run(square):
    config, _ = square
    run = Run(config.run)
    for kind in KINDS:
        width = run.similarity("late", "rbf", kind).attrs["sigma"]
        assert read_variant(run, "late", AS_THEY_ARE).median_width(kind) == pytest.approx(width, rel=1e-12)


def test_certified_gaps_grow_as_norms_shrink(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"], n=8)
    loose = config.model_copy(update={"matching": type(config.matching)(matcher="auction", tolerance=0.05)})
    table = evaluate(loose, **OPTIONS).table
    gaps = table[table["quantity"] == GAP].set_index("tokens")["value"]
    assert 0 < gaps[AS_THEY_ARE] <= 0.05
    assert gaps[CENTRED] > gaps[AS_THEY_ARE] and gaps[CENTRED_EACH] > gaps[AS_THEY_ARE]


def test_a_second_time_nothing_is_matched_and_no_copy_of_features_is_left(square):
    config, evidence = square
    folder = config.run / "evaluation" / "kernels"
    assert not list(folder.rglob("*.npy"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = evaluate(config, seed=2, **OPTIONS)
    pd.testing.assert_frame_equal(again.table, evidence.table)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_legends_hide_no_data(small, square):
    assert len(small.draw(square[1]).axes) == 3


def test_the_words_say_what_cannot_change(square):
    _, evidence = square
    assert "F1@k is the same for every width" in evidence.text
    assert "neither mean matters to the matching" in evidence.text


def test_no_labels_at_all_are_refused(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"], n=6, labels=[[]] * 6)
    with pytest.raises(InputError, match="images: none has labels"):
        evaluate(config, **OPTIONS)


def test_a_single_class_is_reported_and_its_figure_drawn(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"], n=6, labels=[["a"]] * 6)
    evidence = evaluate(config, **OPTIONS)
    correlations = evidence.table[evidence.table["quantity"] == CORRELATION]
    assert correlations["value"].isna().all()
    assert "all labelled images have the same labels" in evidence.text
    _, figure = evidence.save(tmp_path)
    assert figure.stat().st_size > 0


def test_images_that_differ_in_their_number_of_tokens_are_matched_anew_when_centred(small, tmp_path):
    config, counts = small.with_unequal_tokens(small.make_config(tmp_path, n=9, wanted=["early"]), tmp_path)
    evidence = evaluate(config, **OPTIONS)
    images = [z[:count] for z, count in zip(small.load(config, "early")[0], counts, strict=True)]
    mean = np.mean([image.mean(axis=0) for image in images], axis=0)
    labels = small.load_labels(config.data)
    treatments = {
        AS_THEY_ARE: lambda z: z,
        CENTRED: lambda z: z - mean,
        CENTRED_EACH: lambda z: z - z.mean(axis=0),
        UNIT: small.unit,
        CENTRED_UNIT: lambda z: small.unit(z - mean),
    }
    table = evidence.table[(evidence.table["kernel"] == "cosine") & (evidence.table["kind"] == "semantic")]
    for tokens, treat_one in treatments.items():
        treated = [treat_one(image) for image in images]
        cosine = small.similarities(treated, treated, "semantic", "cosine")
        rows = table[table["tokens"] == tokens].set_index("quantity")["value"]
        assert rows[F1] == pytest.approx(small.retrieval(cosine, labels, labels, 1).mean()), tokens
        expected = expected_correlation(small, cosine, labels, labels, same=True)
        assert rows[CORRELATION] == pytest.approx(expected, abs=1e-5), tokens
    assert "matching was repeated" in evidence.text
