"""Layers against layers: numbers from the definitions, networks before and after, and what is refused."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import yaml
from scipy import stats

from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.agreement import Estimate
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.layers.report import find_most_changed

evaluate = partial(compute, "layers")

KINDS = ("semantic", "spatio-semantic")


def upper(matrix):
    return np.asarray(matrix)[np.triu_indices(len(matrix), k=1)]


def of_digits(run):
    return parse_config(
        {
            "run": str(run),
            "data": {"source": "digits", "n_images": 12},
            "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]},
            "matching": {"matcher": "hungarian"},
        }
    )


@pytest.fixture(scope="module")
def within(small, tmp_path_factory):
    config = small.make_config(tmp_path_factory.mktemp("layers"), n=12)
    return config, evaluate(config, resamples=20)


def test_all_layers_and_kinds_are_compared_by_every_measure(within):
    table = within[1].table
    assert len(table) == 6 * 5  # two layers, two kinds; five measures
    assert set(table.comparison) == {"within"} and (table.n_pairs == 66).all()
    assert table.query("measure != 'cka-biased'").low.notna().all()


def test_values_are_those_of_scipy(within, small):
    config, evidence = within
    matrices = {
        (layer, kind): small.similarities(*small.load(config, layer), kind, "cosine")
        for layer in ("early", "late")
        for kind in KINDS
    }
    for row in evidence.table.itertuples():
        a, b = (matrices[place] for place in ((row.layer_a, row.kind_a), (row.layer_b, row.kind_b)))
        if row.measure in ("cka", "cka-biased"):
            continue
        function = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
        assert row.value == pytest.approx(function[row.measure](upper(a), upper(b)).statistic, abs=1e-5)


def test_two_runs_are_compared_layer_by_layer(small, tmp_path):
    config = small.make_config(tmp_path / "one", n=8)
    second = small.make_config(tmp_path / "two", n=8)
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(second.model_dump(mode="json", exclude_none=True)))
    table = evaluate(config, resamples=4, other=path).table
    between = table[table.comparison == str(second.run)]
    same = between[(between.layer_a == between.layer_b) & between.kind_a.isin(KINDS)]
    assert same.query("measure != 'kendall'").value.to_numpy() == pytest.approx(
        1
    )  # the features are the same
    assert (
        between.query("measure == 'kendall' and layer_a == layer_b and kind_a in @KINDS").value > 0.999
    ).all()
    difference = between[between.kind_a == "semantic - spatio-semantic"]
    assert list(difference.layer_a.unique()) == ["early", "late"]
    assert difference.value.to_numpy() == pytest.approx(0, abs=1e-9)


def test_runs_of_other_images_are_refused(small, tmp_path):
    path = tmp_path / "two.yaml"
    second = small.make_config(tmp_path / "two", n=9)
    path.write_text(yaml.safe_dump(second.model_dump(mode="json", exclude_none=True)))
    with pytest.raises(InputError, match="9 images are not the 8"):
        evaluate(small.make_config(tmp_path / "one", n=8), resamples=2, other=path)


def test_a_network_that_lost_nothing_has_not_changed_and_one_that_lost_much_has(tmp_path, small):
    config = of_digits(tmp_path / "run")
    evidence = evaluate(config, resamples=10, images=10, variants=["pruned-0.0", "pruned-0.9"])
    same = evidence.table.query("layer_a == layer_b and kind_a == kind_b and kind_a in @KINDS")
    untouched = same[same.comparison == "pruned-0.0"]
    assert (untouched.n_images == 10).all()
    assert untouched.query("measure != 'kendall'").value.to_numpy() == pytest.approx(1)
    assert (same[same.comparison == "pruned-0.9"].query("measure == 'cka'").value < 0.9).all()
    assert "CKA of each layer, pruned-0.9" in evidence.text
    small.draw(evidence)
    assert (config.run / "evaluation/layers/weights/test_resnet.pruned-0.9.safetensors").is_file()
    fewer = evaluate(config, resamples=2, images=8, variants=["pruned-0.9"])
    assert (fewer.table[fewer.table.comparison == "pruned-0.9"].n_images == 8).all()


def test_features_have_no_network_to_prune(small, tmp_path):
    with pytest.raises(ConfigError, match="--with other="):
        evaluate(small.make_config(tmp_path), variants=["pruned-0.5"])


def test_queries_are_refused(small, tmp_path):
    with pytest.raises(ConfigError, match="queries"):
        evaluate(small.make_config(tmp_path, n_queries=3))


def test_images_may_differ_in_their_number_of_tokens(small, tmp_path, stages):
    config, counts = small.with_unequal_tokens(small.make_config(tmp_path, n=9, wanted=["early"]), tmp_path)
    evidence = evaluate(config, reporter=stages, resamples=20)
    assert "images differ in their number of tokens, so CKA" in stages.notes[-1]
    table = evidence.table.set_index("measure")
    assert table.loc[["cka", "cka-biased"], ["value", "low", "high"]].isna().all(axis=None)
    same = counts[:, None] == counts
    images = [z[:count] for z, count in zip(small.load(config, "early")[0], counts, strict=True)]
    semantic = small.similarities(images, images, "semantic", "cosine")
    equal = np.argwhere(np.triu(same, k=1))
    spatial = [np.sum(small.unit(images[i].ravel()) * small.unit(images[j].ravel())) for i, j in equal]
    expected = stats.pearsonr(semantic[tuple(equal.T)], spatial).statistic
    assert table.loc["pearson", "value"] == pytest.approx(expected, abs=1e-5)
    assert (table.loc["pearson", "n_pairs"], table.loc["pearson", "n_left_out"]) == (
        len(equal),
        36 - len(equal),
    )
    small.draw(evidence)


def test_semantic_cka_is_defined_for_images_that_differ_in_their_number_of_tokens(small, tmp_path):
    both = []
    for name in ("one", "two"):
        config = small.make_config(tmp_path / name, n=9, wanted=["early"])
        both.append(small.with_unequal_tokens(config, tmp_path / name)[0])
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(both[1].model_dump(mode="json", exclude_none=True)))
    evidence = evaluate(both[0], resamples=20, other=path)
    table = evidence.table[evidence.table.comparison != "within"].set_index(["measure", "kind_a"])
    assert table.loc[("cka", "semantic"), ["value", "low", "high"]].to_list() == pytest.approx([1, 1, 1])
    assert table.loc[("cka-biased", "semantic"), "value"] == pytest.approx(1)
    assert table.loc[("pearson", "spatio-semantic"), "value"] == pytest.approx(1)
    for kind in ("spatio-semantic", "semantic - spatio-semantic"):
        assert np.isnan(table.loc[("cka", kind), "value"])
    small.draw(evidence)


def estimates(**values):
    """Return CKA before and after: by kind, the replicates of each layer."""
    return {
        ((layer, kind), (layer, kind)): {"cka": Estimate(float(np.mean(some)), np.array(some), 1, 0, 1)}
        for kind, layers in zip(KINDS, values.values(), strict=True)
        for layer, some in layers.items()
    }


def test_the_layer_that_changed_most_is_reported_with_how_sure_it_is():
    found = estimates(
        semantic={"a": [0.5, 0.6, 0.5, 0.9], "b": [0.8] * 4}, spatial={"a": [0.9] * 4, "b": [0.2] * 4}
    )
    changed = find_most_changed(found)
    assert changed.layer == {"semantic": "a", "spatio-semantic": "b"}
    assert changed.share == {"semantic": 0.75, "spatio-semantic": 1.0}
    assert changed.apart == 0.75


def test_resamples_without_a_value_are_no_votes_for_the_first_layer():
    defined = estimates(
        semantic={"a": [0.9, 0.9], "b": [0.5, 0.5]}, spatial={"a": [0.9, 0.1], "b": [0.5] * 2}
    )
    with_gaps = {
        places: {
            "cka": dataclasses.replace(each["cka"], replicates=np.append(each["cka"].replicates, np.nan))
        }
        for places, each in defined.items()
    }
    changed = find_most_changed(with_gaps)
    assert changed == find_most_changed(defined)
    assert changed.share == {"semantic": 1.0, "spatio-semantic": 0.5}
    nowhere = {
        places: {"cka": dataclasses.replace(each["cka"], replicates=np.full(3, np.nan))}
        for places, each in defined.items()
    }
    assert np.isnan([find_most_changed(nowhere).apart, *find_most_changed(nowhere).share.values()]).all()


def test_nothing_changed_most_where_layers_have_other_names_or_no_value():
    assert find_most_changed({}) is None
    assert (
        find_most_changed(estimates(semantic={"a": [np.nan], "b": [1.0]}, spatial={"a": [1.0], "b": [1.0]}))
        is None
    )
