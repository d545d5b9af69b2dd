"""The retrieval experiment against the definitions, on small runs of real matching."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

import semrsm_dist as srs
from semrsm_dist.config.matching import MatchingConfig
from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.evaluation.pooling import fit_centroids, pool_tokens
from semrsm_dist.evaluation.retrieval import label_f1
from semrsm_dist.evaluation.transport import Transport, token_masses
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.layer_features import LayerFeatures
from semrsm_dist.results.run import Run

evaluate = partial(compute, "retrieval")

OPTIONS = {"resamples": 40, "centroids": 3, "variance": 0.9, "k": [1, 3], "transport": 0.2}


def evaluate_small(config, **options):
    return evaluate(config, **{**OPTIONS, **options})


def expected_matrices(small, queries, database, seed):
    """Return the similarities of every method and kernel, each written from its definition."""
    found = {
        (kind, kernel): small.similarities(queries, database, kind, kernel)
        for kind in ("semantic", "spatio-semantic")
        for kernel in ("linear", "cosine", "rbf")
    }
    left, right = (small.unit(z.mean(axis=1)) for z in (queries, database))
    found["average pooling", "cosine"] = left @ right.T
    values, vectors = np.linalg.eigh(np.cov(right.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.argmax(np.cumsum(values) / values.sum() >= OPTIONS["variance"])) + 1
    whiten = vectors[:, :kept] / np.sqrt(values[:kept])
    white = [small.unit((z - right.mean(axis=0)) @ whiten) for z in (left, right)]
    found["PCA-whitened pooling", "cosine"] = white[0] @ white[1].T
    for name, power in (("GeM pooling", 3.0), ("max pooling", np.inf)):
        pooled = [small.unit(pool_tokens(z, power=power).astype(float)) for z in (queries, database)]
        found[name, "cosine"] = pooled[0] @ pooled[1].T
    tokens, others = small.unit(queries), small.unit(database)
    centroids = fit_centroids(others.reshape(-1, others.shape[2]), OPTIONS["centroids"], seed=seed)
    vlads = [np.stack([vlad_of(small, image, centroids) for image in z]) for z in (tokens, others)]
    found["VLAD", "cosine"] = vlads[0] @ vlads[1].T
    masses = [token_masses(z, np.full(len(z), z.shape[1])) for z in (queries, database)]
    found["transport", "cosine"] = Transport(OPTIONS["transport"]).similarities(tokens, others, masses)
    affinities = np.einsum("isc,jtc->ijst", tokens, others)
    found["MaxSim", "cosine"] = affinities.max(axis=3).mean(axis=2)
    found["Chamfer", "cosine"] = (
        affinities.max(axis=3).mean(axis=2) + affinities.max(axis=2).mean(axis=2)
    ) / 2
    return found


def expected_score(small, matrices, row, labels, others, groups=None, same=True):
    """Return F1@k of each query for a row of the table; by chance, it is the mean over all possible hits."""
    if row.method == "chance":
        return small.retrieval(
            np.zeros((len(labels), len(others))), labels, others, len(others), groups, same
        )
    return small.retrieval(matrices[row.method, row.kernel], labels, others, row.k, groups, same)


def vlad_of(small, image, centroids):
    nearest = np.argmin(np.linalg.norm(image[:, None] - centroids, axis=2), axis=1)
    sums = np.stack([(image[nearest == k] - c).sum(axis=0) for k, c in enumerate(centroids)])
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    sums = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
    return small.unit(sums.ravel())


@pytest.fixture(scope="module")
def grouped(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("grouped"), groups=True)
    return config, evaluate_small(config, seed=3)


def test_every_score_is_that_of_its_definition_with_and_without_near_duplicates(small, grouped):
    config, evidence = grouped
    queries, database = small.load(config, "late")
    labels = small.load_labels(config.data)
    groups = list(pd.read_parquet(config.data.table)["group"])
    matrices = expected_matrices(small, queries, queries, 3)
    scores = evidence.table[(evidence.table["layer"] == "late") & evidence.table["against"].isna()]
    assert len(scores) == 2 * 2 * (len(matrices) + 1)
    for row in scores.itertuples():
        chosen = groups if row.groups == "excluded" else None
        expected = expected_score(small, matrices, row, labels, labels, chosen)
        interval = mean_interval(expected, resamples=40, seed=3)
        assert row.f1 == pytest.approx(interval.estimate), row
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high)), row
        assert (row.n_queries, row.n_left_out, row.seed) == (len(queries), 0, 3)
    assert set(scores["groups"]) == {"excluded", "included"}
    assert database is queries


def test_differences_are_paired_over_queries(small, grouped):
    config, evidence = grouped
    queries, _ = small.load(config, "early")
    labels = small.load_labels(config.data)
    matrices = expected_matrices(small, queries, queries, 3)
    table = evidence.table
    chosen = table[(table["layer"] == "early") & table["against"].notna() & (table["groups"] == "included")]
    asked = {(row.kernel, row.against) for row in chosen.itertuples()}
    assert {
        (kernel, other)
        for kernel in ("linear", "cosine", "rbf")
        for other in ("spatio-semantic", "average pooling")
    } <= asked
    assert {other for kernel, other in asked if kernel == "cosine"} >= {"VLAD", "MaxSim", "Chamfer"}
    for row in chosen.itertuples():
        kernel = row.kernel if row.against == "spatio-semantic" else "cosine"
        against = row._replace(method=row.against, kernel=kernel)
        own, other = (expected_score(small, matrices, which, labels, labels) for which in (row, against))
        interval = mean_interval(own - other, resamples=40, seed=3)
        assert (row.f1, row.low, row.high) == pytest.approx((interval.estimate, interval.low, interval.high))


def test_the_words_say_where_matching_does_not_win(grouped):
    _, evidence = grouped
    for part in (
        "F1@1, near-duplicates excluded (14 queries",
        "spatio-semantic (rbf)",
        "undecided: ",
        "VLAD: 3 centroids",
    ):
        assert part in evidence.text


def test_chance_is_drawn_across_the_place_of_each_layer(small, grouped):
    left = small.draw(grouped[1]).axes[0]
    chance = next(item for item in left.collections if item.get_label() == "chance")
    middles = [segment[:, 0].mean() for segment in chance.get_segments()]
    assert middles == pytest.approx(list(left.get_xticks()))


def test_late_interaction_is_kept_and_only_what_is_missing_is_computed_again(grouped):
    config, evidence = grouped
    root = config.run / "evaluation" / "retrieval" / "late-interaction.zarr" / "late"
    files = sorted(path for path in root.rglob("c/*/*") if path.is_file())
    assert len(files) == 2 * 4
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    again = evaluate_small(config, seed=3)
    pd.testing.assert_frame_equal(again.table, evidence.table)
    changed = {path for path in files if path.stat().st_mtime_ns != before[path]}
    assert files[0] in changed and len(changed) == 2  # of MaxSim and Chamfer, this tile alone
    assert not list((config.run / "evaluation" / "retrieval").glob(".vlad-*"))


def test_queries_meet_a_database_of_their_own(small, tmp_path):
    config = small.make_config(tmp_path, n=11, n_queries=5, wanted=["late"])
    evidence = evaluate_small(config, seed=1, k=2)
    labels, others = small.load_labels(config.queries), small.load_labels(config.data)
    matrices = expected_matrices(small, *small.load(config, "late"), 1)
    scores = evidence.table[(evidence.table["layer"] == "late") & evidence.table["against"].isna()]
    assert len(scores) == len(matrices) + 1
    for row in scores.itertuples():
        expected = expected_score(small, matrices, row, labels, others, same=False)
        assert row.f1 == pytest.approx(expected.mean()), row


def test_images_without_labels_are_left_out_and_counted(small, tmp_path):
    labels = [[], ["a"], ["a", "b"], [], ["b"], ["c"], ["never again"]]
    config = small.make_config(tmp_path, n=7, labels=labels, wanted=["late"])
    evidence = evaluate_small(config)
    assert set(evidence.table["n_queries"]) == {5}
    assert set(evidence.table["n_left_out"]) == {2}
    assert "2 queries have only labels that no other image of the database has" in evidence.text


def test_labels_of_small_objects_do_not_count_if_that_is_requested(small, tmp_path):
    labels = [["a", "b"], ["a"], ["b", "c"], ["c"], ["a", "c"], ["b"]]
    areas = [[0.5, 0.1], [0.3], [0.2, 0.6], None, [0.1, 0.2], [0.9]]
    large = [["a"], ["a"], ["c"], ["c"], [], ["b"]]  # at least .3, and what is not known
    config = small.make_config(tmp_path / "areas", n=6, labels=labels, wanted=["late"])
    with pytest.raises(InputError, match="how much of an image a label covers is not known"):
        evaluate_small(config, min_area=0.3)
    pd.read_parquet(config.data.table).assign(label_areas=areas).to_parquet(config.data.table)
    evidence = evaluate_small(config, min_area=0.3)
    expected = evaluate_small(small.make_config(tmp_path / "large", n=6, labels=large, wanted=["late"]))
    pd.testing.assert_frame_equal(evidence.table, expected.table)
    assert "5 of 6 labelled images keep one; of 1, areas are unknown" in evidence.text


@pytest.mark.parametrize(
    ("weights", "column", "values", "unit"),
    [
        ("count", "label_counts", [[1, 3], [2], [1, 1], None, [5], [1]], "number of objects"),
        ("area", "label_areas", [[0.5, 0.1], [0.3], [0.2, 0.6], None, [0.9], [0.0]], "area"),
    ],
)
def test_hits_are_weighed_by_number_or_area_if_that_is_requested(
    small, tmp_path, weights, column, values, unit
):
    labels = [["a", "b"], ["a"], ["b", "c"], ["c"], ["a"], ["b"]]
    config = small.make_config(tmp_path, n=6, labels=labels, wanted=["late"])
    with pytest.raises(InputError, match=f"the {unit} of labels is not known, so weights: {weights}"):
        evaluate_small(config, weights=weights)
    pd.read_parquet(config.data.table).assign(**{column: values}).to_parquet(config.data.table)
    evidence = evaluate_small(config, weights=weights)
    z = small.load(config, "late")[0]
    similarities = small.similarities(z, z, "semantic", "cosine")
    known = [
        dict(zip(labels[i], values[i], strict=True)) if values[i] and any(values[i]) else {} for i in range(6)
    ]
    scores = []
    for query, weighed in enumerate(known):
        others = [hit for hit in range(6) if hit != query and known[hit]]
        if weighed:
            hit = max(others, key=lambda one: similarities[query, one])
            scores.append(label_f1(weighed, known[hit]))
    row = evidence.table[(evidence.table["method"] == "semantic") & (evidence.table["kernel"] == "cosine")]
    row = row[(row["k"] == row["k"].min()) & row["against"].isna()].iloc[0]
    assert row["f1"] == pytest.approx(np.mean(scores))
    assert row["n_queries"] == len(scores)
    assert f"labels weighed by {weights}" in evidence.text
    assert f"labels are weighed by the {unit} of each; " in evidence.text


def test_a_single_class_makes_every_hit_right_and_is_reported(small, tmp_path):
    config = small.make_config(tmp_path, n=6, labels=[["a"]] * 6, wanted=["late"])
    evidence = evaluate_small(config)
    assert set(evidence.table[evidence.table["against"].isna()]["f1"]) == {1.0}
    assert "every hit is right" in evidence.text


def test_ties_and_what_cannot_be_compared_are_reported(small, tmp_path):
    config = small.make_config(tmp_path, n=6, labels=[["a"], ["b"]] * 3, wanted=["late"])
    z = np.load(config.data.layers["late"])
    z[:5] = z[0]  # five images alike
    np.save(config.data.layers["late"], z)
    evidence = evaluate_small(config)
    rows = evidence.table[evidence.table["against"].isna() & (evidence.table["k"] == 1)]
    rows = rows.set_index(["method", "kernel"])
    assert rows.loc[("semantic", "cosine"), "n_tied"] == 6
    assert rows.loc[("semantic", "cosine"), "n_pairs"] == 30
    assert "ties at hit 1 (another image is as similar" in evidence.text
    assert "6 by semantic," in evidence.text


def test_a_query_without_a_norm_is_told_apart_by_method(small, tmp_path):
    config = small.make_config(tmp_path, n=6, labels=[["a"], ["b"]] * 3, wanted=["late"])
    z = np.load(config.data.layers["late"])
    z[2] = 0.0
    np.save(config.data.layers["late"], z)
    evidence = evaluate_small(config)
    assert "(5 to 6 queries, 0 to 1 left out depending on the method;" in evidence.text
    assert "10 of 30 by semantic," in evidence.text
    rows = evidence.table[evidence.table["against"].isna()].set_index(["method", "kernel", "k"])
    assert rows.loc[("semantic", "cosine", 1), "n_undefined"] == 10
    assert rows.loc[("average pooling", "cosine", 1), "n_left_out"] == 1


def test_more_hits_than_there_are_images_are_reported(small, tmp_path):
    config = small.make_config(tmp_path, n=6, labels=[["a"], ["b"]] * 3, wanted=["late"])
    evidence = evaluate_small(config, k=[1, 50])
    assert "6 of 6 queries have fewer than 50 images to find, the fewest 5" in evidence.text


def test_one_group_of_all_images_leaves_scores_undefined(small, tmp_path):
    config = small.make_config(tmp_path, n=4, groups=False, wanted=["late"])
    table = pd.read_parquet(config.data.table).assign(group="one")
    table.to_parquet(config.data.table)
    evidence = evaluate_small(config)
    assert "undefined: late" in evidence.text
    assert "nan" not in evidence.text


def test_no_labels_at_all_are_refused(small, tmp_path):
    config = small.make_config(tmp_path, n=6, labels=[[]] * 6, wanted=["late"])
    with pytest.raises(InputError, match="images: none has labels"):
        evaluate_small(config)


def test_tokens_are_drawn_without_replacement_from_all_images(small, grouped):
    config, _ = grouped
    features = LayerFeatures(Run(config.run), "early")
    tokens = small.unit(small.load(config, "early")[1]).reshape(-1, 4)

    def places(sample):
        distances = np.linalg.norm(sample[:, None] - tokens, axis=2)
        assert distances.min(axis=1).max() < 1e-6
        return list(distances.argmin(axis=1))

    assert places(features.sample_tokens(1000, seed=0)) == list(range(len(tokens)))
    some = places(features.sample_tokens(20, seed=0))
    assert len(set(some)) == 20
    assert some == sorted(some) != places(features.sample_tokens(20, seed=1))


def test_as_many_tokens_are_drawn_where_images_have_few_of_them(tmp_path):
    """Padding is not drawn: a sample is as large as requested, and every token as likely as any other."""
    z = np.random.default_rng(0).normal(size=(12, 9, 4)).astype(np.float32)
    counts = np.array([1, 9, 2, 1, 3, 1, 1, 2, 1, 1, 5, 1])
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "counts.npy", counts)
    data = {"source": "features", "layers": {"a": str(tmp_path / "z.npy")}}
    data["token_counts"] = {"a": str(tmp_path / "counts.npy")}
    srs.run({"run": str(tmp_path / "run"), "data": data})
    features = LayerFeatures(Run(tmp_path / "run"), "a")
    real = np.concatenate([image[:count] for image, count in zip(z, counts, strict=True)])
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    np.testing.assert_allclose(features.sample_tokens(100, seed=0), real, rtol=1e-6)
    samples = [features.sample_tokens(10, seed=seed) for seed in range(200)]
    assert {len(sample) for sample in samples} == {10}
    drawn = np.array([[np.abs(real - token).sum(axis=1).argmin() for token in sample] for sample in samples])
    assert all(len(set(row)) == 10 for row in drawn)
    often = np.bincount(drawn.ravel(), minlength=len(real))
    assert np.all(np.abs(often - 200 * 10 / len(real)) < 5 * np.sqrt(200 * 10 / len(real)))


def test_the_class_token_of_a_transformer_is_compared_by_its_angle(small, tmp_path):
    config = parse_config(
        {
            "run": str(tmp_path / "run"),
            "data": {"source": "digits", "n_images": 6},
            "model": {"name": "test_vit", "weights": "digits", "layers": ["norm"]},
            "kernels": ["cosine"],
        }
    )
    evidence = evaluate_small(config)
    import torch

    from semrsm_dist.features.models import ModelSpec, load_model

    model, images = load_model(ModelSpec("test_vit", "digits")), config.data
    batch = torch.stack([model.transform(images.read(record)) for record in images.entries()])
    with torch.inference_mode():
        token = small.unit(model.module.forward_features(batch)[:, 0].double().numpy())
    labels = [set(record.labels) for record in images.entries()]
    table = evidence.table
    scores = table[(table["method"] == "class token") & table["against"].isna()].set_index(["layer", "k"])[
        "f1"
    ]
    assert scores["norm", 3] == pytest.approx(small.retrieval(token @ token.T, labels, labels, 3).mean())


def test_progressive_search_finds_the_hits_of_the_matrix_and_tells_what_it_took(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"], groups=True)
    config = config.model_copy(update={"matching": MatchingConfig(matcher="auction", tolerance=1e-3)})
    plain, searched = (evaluate_small(config, search=search) for search in ("matrix", "progressive"))
    pd.testing.assert_frame_equal(searched.table[plain.table.columns], plain.table)
    shares = searched.table[["without_product", "sketched", "with_product", "solved"]].sum(axis=1)
    is_searched = (
        (plain.table["method"] == "semantic")
        & (plain.table["kernel"] == "cosine")
        & plain.table["against"].isna()
    )
    np.testing.assert_allclose(shares, is_searched.astype(float))
    assert searched.text.count("solved; the hits of the matrix") == 2


def test_progressive_search_is_refused_where_labels_decide_who_can_be_a_hit(small, tmp_path):
    config = small.make_config(tmp_path, n=6, wanted=["late"], labels=[["a"]] * 5 + [[]])
    config = config.model_copy(update={"matching": MatchingConfig(matcher="auction")})
    with pytest.raises(ConfigError, match="some have no labels"):
        evaluate_small(config, search="progressive")


def test_an_impossible_search_is_refused_before_anything_runs(small, tmp_path):
    config = small.make_config(tmp_path, n=6, wanted=["late"])
    with pytest.raises(
        ConfigError, match="needs the matcher 'auction', but the run matches with 'hungarian'"
    ):
        evaluate_small(config, search="progressive")
    assert not config.run.exists()


def test_images_may_differ_in_their_number_of_tokens(small, tmp_path):
    config, counts = small.with_unequal_tokens(small.make_config(tmp_path, n=9, wanted=["early"]), tmp_path)
    evidence = evaluate_small(config, seed=1)
    labels = small.load_labels(config.data)
    images = [small.unit(z[:count]) for z, count in zip(small.load(config, "early")[0], counts, strict=True)]
    maxsim = np.array([[np.mean((one @ other.T).max(axis=1)) for other in images] for one in images])
    centroids = fit_centroids(np.concatenate(images), OPTIONS["centroids"], seed=1)
    vlads = np.stack([vlad_of(small, image, centroids) for image in images])
    scores = evidence.table[evidence.table["against"].isna()].set_index(["method", "kernel", "k"])["f1"]
    matrices = {"MaxSim": maxsim, "Chamfer": (maxsim + maxsim.T) / 2, "VLAD": vlads @ vlads.T}
    defined = np.sum(counts[:, None] == counts) - 9
    assert f"{72 - defined} of 72 by spatio-semantic" in evidence.text
    assert "by semantic" not in evidence.text
    for method, matrix in matrices.items():
        expected = small.retrieval(matrix, labels, labels, 3)
        assert scores[method, "cosine", 3] == pytest.approx(expected.mean()), method
