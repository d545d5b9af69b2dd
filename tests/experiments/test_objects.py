"""The gain against the objects of the images, from boxes of which the answer is known."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.evaluation.bootstrap import mean_interval
from semrsm_dist.evaluation.regression import fit_slopes, holm
from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.objects.boxes import PREDICTORS, describe_objects, find_boxes, read_boxes
from semrsm_dist.experiments.objects.report import write_text

evaluate = partial(compute, "objects", resamples=200)

BOXES = pd.DataFrame(
    [
        ("a", 0.0, 0.0, 0.5, 0.5),
        ("a", 0.5, 0.5, 1.0, 0.75),
        ("b", 0.25, 0.25, 0.75, 0.75),
    ],
    columns=["image_id", "x0", "y0", "x1", "y1"],
)


def test_boxes_say_how_large_many_central_and_alone_objects_are():
    found = describe_objects(BOXES)
    assert found.loc["a"].to_dict() == pytest.approx(
        {"size": 0.5, "number": 1.0, "off-centre": 0.5, "clutter": 1 / 3}
    )
    assert found.loc["b"].to_dict() == pytest.approx(
        {"size": 0.5, "number": 0.0, "off-centre": 0.0, "clutter": 0.0}
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x1": [0.0, 1.0, 0.75]}, "1 of 3 boxes are empty or not within 0 and 1, the first in row 1"),
        ({"y1": [0.5, 75.0, 0.75]}, "the first in row 2"),
        ({"x0": [0.0, 0.5, None]}, "the first in row 3"),
    ],
)
def test_boxes_that_are_none_are_refused(tmp_path, change, words):
    path = tmp_path / "boxes.csv"
    BOXES.assign(**change).to_csv(path, index=False)
    with pytest.raises(InputError, match=words):
        read_boxes(path)


def test_a_table_without_a_column_and_what_is_no_table_are_refused(tmp_path):
    path = tmp_path / "boxes.parquet"
    BOXES.drop(columns="y0").to_parquet(path)
    with pytest.raises(InputError, match="has no column y0: boxes need image_id"):
        read_boxes(path)
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"cannot be read as a table of boxes"):
        read_boxes(path)


def make_boxes(path, names, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for name in names:
        for _ in range(rng.integers(1, 4)):
            x0, y0 = rng.uniform(0, 0.5, 2)
            width, height = rng.uniform(0.1, 0.5, 2)
            rows.append((name, x0, y0, x0 + width, y0 + height))
    pd.DataFrame(rows, columns=BOXES.columns).to_csv(path, index=False)


@pytest.fixture(scope="module")
def judged(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    config = small.make_config(folder, n=24, wanted=["late"], groups=True)
    make_boxes(folder / "boxes.csv", [f"images{i}" for i in range(23)])  # the last has none
    return config, folder / "boxes.csv", evaluate(config, boxes=folder / "boxes.csv", seed=1)


def gains(small, config):
    z, labels = small.load(config, "late")[0], small.load_labels(config.data)
    groups = list(pd.read_parquet(config.data.table)["group"])
    pooled = small.unit(z.mean(axis=1))
    matrices = {kind: small.similarities(z, z, kind, "cosine") for kind in ("semantic", "spatio-semantic")}
    scores = {
        name: small.retrieval(matrix, labels, labels, 1, groups)
        for name, matrix in (matrices | {"average pooling": pooled @ pooled.T}).items()
    }
    return {name: scores["semantic"] - scores[name] for name in ("spatio-semantic", "average pooling")}


def test_slopes_are_those_of_the_gains(small, judged):
    config, boxes, evidence = judged
    names = [f"images{i}" for i in range(24)]
    predictors = describe_objects(read_boxes(boxes)).reindex(names).to_numpy()
    slopes = evidence.table[evidence.table["quantity"] == "slope"]
    assert len(slopes) == 2 * len(PREDICTORS)
    clusters = np.array([index // 2 if index < 22 else index for index in range(24)])
    for against, gain in gains(small, config).items():
        rows = slopes[slopes["against"] == against]
        expected = fit_slopes(predictors, gain, clusters=clusters, resamples=200, seed=1)
        np.testing.assert_allclose(rows["value"], expected.values)
        np.testing.assert_allclose(rows["p"], expected.p_values())
        assert list(rows["predictor"]) == list(PREDICTORS) and set(rows["n"]) == {23}
    np.testing.assert_allclose(slopes["p_holm"], holm(slopes["p"]))


def test_means_are_resampled_with_their_near_duplicates(small, judged):
    config, _, evidence = judged
    clusters = np.array([index // 2 if index < 22 else index for index in range(24)])
    for against, gain in gains(small, config).items():
        gain[23] = np.nan  # without boxes
        rows = evidence.table[evidence.table["against"] == against]
        mean = rows[rows["quantity"] == "mean gain"].iloc[0]
        expected = mean_interval(gain, clusters=clusters, resamples=200, seed=1)
        np.testing.assert_allclose(
            mean[["value", "low", "high"]].astype(float), (expected.estimate, expected.low, expected.high)
        )


def test_no_query_that_can_be_judged_is_refused(small, judged, tmp_path):
    config, boxes, _ = judged
    alike = pd.read_parquet(config.data.table).assign(group="all")
    alike.to_parquet(tmp_path / "alike.parquet")
    changed = config.model_copy(
        update={
            "run": tmp_path / "run",
            "data": config.data.model_copy(update={"table": tmp_path / "alike.parquet"}),
        }
    )
    with pytest.raises(InputError, match="no query with boxes can be judged"):
        evaluate(changed, boxes=boxes)


def test_queries_that_differ_between_layers_are_told_and_thirds_stay_three():
    kinds = {"quantity": "mean gain", "against": "average pooling", "value": 0.1, "low": 0.0, "high": 0.2}
    rows = []
    for layer, n, size in (("a", 22, 0.2), ("b", 23, 0.3)):
        place = {**kinds, "layer": layer, "n": n, "n_left_out": 24 - n, "confidence": 0.95}
        rows += [
            place,
            {**place, "quantity": "slope", "predictor": "size", "value": np.nan, "p_holm": np.nan},
        ]
        level = {"predictor": "size", "level": "lowest third", "predictor_mean": size}
        rows.append({**place, **level, "quantity": "mean gain of a third"})
    text = write_text(pd.DataFrame(rows), pd.DataFrame(), [])
    assert "over 22 to 23 queries with boxes (1 to 2 left out)" in text
    assert text.count("lowest third") == 1 and "lowest third (0.20 to 0.30)" in text
    assert "nan" not in text and "no slope of size" in text and "adjustment for 0 slopes" in text


def test_thirds_hold_all_queries_with_boxes_and_average_to_the_mean(judged):
    table = judged[2].table
    mean = table[table["quantity"] == "mean gain"].set_index("against")["value"]
    thirds = table[table["quantity"] == "mean gain of a third"]
    for (against, _), rows in thirds.groupby(["against", "predictor"]):
        assert rows["n"].sum() == 23
        assert np.average(rows["value"], weights=rows["n"]) == pytest.approx(mean[against])
        assert rows["predictor_mean"].is_monotonic_increasing
        if rows["predictor"].iloc[0] != "number":  # of which many are equal
            assert rows["n"].max() - rows["n"].min() <= 1


def test_images_with_equal_values_are_in_one_third(judged):
    _, boxes, evidence = judged
    found = describe_objects(read_boxes(boxes))["number"]
    rows = evidence.table[evidence.table["quantity"] == "mean gain of a third"]
    rows = rows[(rows["predictor"] == "number") & (rows["against"] == "average pooling")]
    assert list(rows["n"]) == [int((found == value).sum()) for value in sorted(set(found))]


def test_the_words_and_the_figure_have_all_of_it(small, judged):
    text = judged[2].text
    for part in (
        "over 23 queries with boxes (1 left out)",
        "Holm's adjustment for 8 slopes",
        "by clutter:",
        "correlations:",
    ):
        assert part in text
    assert [axes.get_title() for axes in small.draw(judged[2]).axes] == [
        "semantic less spatio-semantic",
        "semantic less average pooling",
    ]


def test_without_boxes_nothing_is_computed(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"])
    with pytest.raises(ConfigError, match="needs the boxes"):
        evaluate(config)
    assert not config.run.exists()


@pytest.mark.slow
def test_boxes_come_from_the_source_where_it_knows_them(tmp_path):
    document = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 255, (40, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        document["images"].append({"id": index, "file_name": f"{index}.png", "width": 80, "height": 40})
        for _ in range(1 + index % 3):
            x, y, width, height = (int(n) for n in rng.integers(1, 20, 4))
            one = {"image_id": index, "category_id": 1 + int(rng.integers(2)), "bbox": [x, y, width, height]}
            document["annotations"].append(one)
    document["annotations"][0]["bbox"] = None  # unknown: its image is left out
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    config = parse_config(
        {
            "run": str(tmp_path / "run"),
            "data": {"source": "coco", "path": str(tmp_path), "annotations": str(tmp_path / "boxes.json")}
            | {"images": str(tmp_path)},
            "model": {"name": "test_resnet", "weights": "random", "layers": ["layer4"]},
        }
    )
    found = find_boxes(config, "images", None)
    first = document["annotations"][1]["bbox"]
    assert found.iloc[1].tolist() == pytest.approx(
        ["1", first[0] / 80, first[1] / 40, (first[0] + first[2]) / 80, (first[1] + first[3]) / 40]
    )
    predictors = describe_objects(found)
    assert set(predictors.index) == {str(index) for index in range(1, 12)}
    assert 2.0 ** predictors.loc["5", "number"] == pytest.approx(3)
    evidence = evaluate(config)
    assert set(evidence.table.loc[evidence.table["quantity"] == "slope", "n_left_out"]) == {1}


def test_boxes_of_other_images_are_refused(small, tmp_path):
    config = small.make_config(tmp_path, wanted=["late"])
    make_boxes(tmp_path / "boxes.csv", ["other"])
    with pytest.raises(InputError, match="boxes of 0 of 14 images of the run, too few"):
        evaluate(config, boxes=tmp_path / "boxes.csv")
