"""RSMs against outputs: numbers recomputed from the network, outputs given as a file, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from scipy.spatial.distance import jensenshannon

from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.output_similarity.report import write_text
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.spec import find_shipped
from semrsm_dist.pipeline.stages.outputs import require_outputs
from semrsm_dist.results.run import Run

evaluate = partial(compute, "output-similarity")

N = 14


def digits(run, weights="digits"):
    return parse_config(
        {
            "run": str(run),
            "data": {"source": "digits", "n_images": N},
            "model": {"name": "test_resnet", "weights": str(weights), "layers": ["layer4"]},
            "matching": {"matcher": "hungarian"},
        }
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    config = digits(tmp_path_factory.mktemp("outputs") / "run")
    return config, evaluate(config, resamples=30)


def upper(matrix):
    return np.asarray(matrix)[np.triu_indices(len(matrix), k=1)]


def test_values_are_those_of_the_network_and_scipy(found):
    config, evidence = found
    model = load_model(ModelSpec("test_resnet", "digits"))
    scenes = config.data
    with torch.inference_mode():
        images = torch.stack([model.transform(scenes.read(record)) for record in scenes.entries()])
        yes = model.module(images).double().sigmoid().numpy()
    divergence = np.mean(
        [[[jensenshannon([a, 1 - a], [b, 1 - b]) ** 2 for b in p] for a in p] for p in yes.T], axis=0
    )
    run = Run(config.run)
    for kernel in ("linear", "cosine", "rbf"):
        for kind in ("semantic", "spatio-semantic"):
            similarity = run.similarity("layer4", kernel, kind).values
            for measure, function in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
                row = evidence.table.query(
                    f"kernel == {kernel!r} and kind == {kind!r} and measure == {measure!r}"
                ).iloc[0]
                expected = function(upper(similarity), upper(divergence)).statistic
                assert row.value == pytest.approx(expected, abs=1e-5)
                assert row.low < row.high and (row.n_pairs, row.n_left_out) == (N * (N - 1) // 2, 0)


def test_the_difference_of_the_kinds_is_reported_with_an_interval_of_its_own(found):
    table = found[1].table.query("kernel == 'cosine' and measure == 'pearson'").set_index("kind")
    difference = table.loc["semantic - spatio-semantic"]
    assert difference.value == table.loc["semantic"].value - table.loc["spatio-semantic"].value
    assert difference.low < difference.value < difference.high


def test_outputs_are_extracted_once(found, stages):
    config, evidence = found
    again = evaluate(config, reporter=stages, resamples=30)
    assert "extraction" not in stages.names and "matching" not in stages.names
    assert again.table.equals(evidence.table)


def test_a_lost_chunk_of_outputs_is_extracted_again(found, stages):
    config, evidence = found
    chunk = next(
        path
        for path in (config.run / "features.zarr/images/@outputs/features/c").rglob("*")
        if path.is_file()
    )
    chunk.write_bytes(b"damaged")
    assert evaluate(config, reporter=stages, resamples=30).table.equals(evidence.table)
    assert "extraction" in stages.names


def test_text_and_figure_say_what_the_table_says(found, small):
    text = found[1].text
    assert "yes or no to each label" in text and text.count("of 3 layers x kernels") == 2
    assert len(small.draw(found[1]).axes) == 6


def test_a_sample_of_the_pairs_is_reported(found):
    table = found[1].table.assign(n_pairs=10**6).copy()
    assert "random sample" not in write_text(table)
    table.loc[table.measure == "pearson", "n_pairs"] = 5 * 10**6
    assert "a random sample of 1000000 of 5000000 pairs, standard error at most 0.001" in write_text(table)


def features(small, folder, **options):
    return small.make_config(folder, n=8, wanted=["late"], **options)


def test_features_without_a_model_take_given_probabilities(small, tmp_path):
    config = features(small, tmp_path)
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=8)
    np.save(tmp_path / "p.npy", p)
    table = evaluate(config, resamples=10, probabilities=tmp_path / "p.npy").table
    queries, database = small.load(config, "late")
    similarity = small.similarities(queries, database, "semantic", "cosine")
    divergence = [[jensenshannon(a, b) ** 2 for b in p] for a in p]
    row = table.query("kernel == 'cosine' and kind == 'semantic' and measure == 'pearson'").iloc[0]
    assert row.value == pytest.approx(
        stats.pearsonr(upper(similarity), upper(divergence)).statistic, abs=1e-6
    )
    assert row.outputs == "given"


def test_the_same_probabilities_for_all_images_leave_the_correlation_undefined(small, tmp_path):
    np.save(tmp_path / "p.npy", np.full((8, 3), 1 / 3))
    evidence = evaluate(features(small, tmp_path), resamples=5, probabilities=tmp_path / "p.npy")
    assert evidence.table.value.isna().all() and evidence.table.low.isna().all()
    assert "undefined: 12 of 12" in evidence.text and (evidence.table.n_pairs == 28).all()


def test_probabilities_of_other_images_are_refused(small, tmp_path):
    np.save(tmp_path / "p.npy", np.full((7, 3), 1 / 3))
    with pytest.raises(InputError, match="of 7 images, but the run has 8"):
        evaluate(features(small, tmp_path), probabilities=tmp_path / "p.npy")


def test_a_file_of_no_probabilities_is_refused_before_anything_runs(small, tmp_path):
    config = features(small, tmp_path)
    (tmp_path / "p.npy").write_text("0.5 0.5")
    with pytest.raises(InputError, match="cannot be read as an array"):
        evaluate(config, probabilities=tmp_path / "p.npy")
    np.save(tmp_path / "p.npy", np.ones((8, 3)))
    with pytest.raises(InputError, match="no probabilities"):
        evaluate(config, probabilities=tmp_path / "p.npy")
    assert not config.run.exists()  # which would have been for nothing


def test_features_without_probabilities_are_refused_before_anything_runs(small, tmp_path):
    config = features(small, tmp_path)
    with pytest.raises(ConfigError, match="--with probabilities"):
        evaluate(config)
    assert not config.run.exists()


def test_queries_are_refused(small, tmp_path):
    config = features(small, tmp_path, n_queries=4)
    with pytest.raises(ConfigError, match="queries"):
        evaluate(config)


def write_weights(path, n_outputs):
    """Write the shipped weights with another head, and without what they say of it."""
    state = load_file(find_shipped("test_resnet"))
    state = {name: values for name, values in state.items() if not name.startswith("fc.")}
    if n_outputs:
        state |= {"fc.weight": torch.zeros(n_outputs, 96), "fc.bias": torch.zeros(n_outputs)}
    save_file(state, path)
    return path


@pytest.mark.parametrize(("n_outputs", "reason"), [(0, "no class head"), (512, "512 outputs .* embedding")])
def test_a_model_without_classes_is_refused_before_anything_runs(n_outputs, reason, tmp_path):
    config = digits(tmp_path / "run", write_weights(tmp_path / "weights.safetensors", n_outputs))
    with pytest.raises(ConfigError, match=reason):
        evaluate(config)
    assert not config.run.exists()


def test_whoever_knows_the_weights_can_say_what_their_outputs_mean(tmp_path):
    config = digits(tmp_path / "run", write_weights(tmp_path / "weights.safetensors", 512))
    assert require_outputs(config, "classes")[1] == "classes"
