"""What is right in a configuration is read as it is meant, and what changes the numbers is marked."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.config.matching import MatchingConfig
from semrsm_dist.config.reading import read_document
from semrsm_dist.config.schema import ModelConfig, StorageConfig, load_config, parse_config
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import ConfigError
from semrsm_dist.fields import fingerprint_fields, result_fields
from tests.config.conftest import DIGITS, FEATURES, IMAGES

FILE = Path(__file__).parents[2] / "jobs" / "digits.yaml"

JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_shipped_jobs_are_valid_and_survive_a_round_trip(path):
    config = load_config(path)
    document = config.model_dump(mode="json", exclude_none=True)
    assert parse_config(json.loads(json.dumps(document))) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(document))) == config


@pytest.mark.parametrize(
    ("text", "section", "kind"),
    [
        (IMAGES, "data", DigitScenes),
        (IMAGES.replace("source: digits\n  n_images: 60", "source: folder\n  path: x"), "data", FolderImages),
        (
            IMAGES.replace("source: digits\n  n_images: 60", "source: table\n  path: x.csv"),
            "data",
            TableImages,
        ),
        (FEATURES, "data", FeaturesData),
        (FEATURES + "queries: {source: features, layers: {last: q.npy}}\n", "queries", FeaturesData),
    ],
)
def test_each_source_is_read_as_its_own_kind(load, text, section, kind):
    assert type(getattr(load(text), section)) is kind


@given(st.floats(min_value=0, max_value=1e300))
@pytest.mark.parametrize("written", [repr, "{:e}".format, "{:.0e}".format, "{:g}".format])
def test_numbers_mean_what_python_means_by_them(written, number):
    text = written(number)
    document, _ = read_document(FILE, [f"a={text}"])
    assert isinstance(document["a"], int | float)
    assert document["a"] == float(text)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.0e-3", ".1e-2", "1.e-3", "0.001"])
def test_scientific_numbers_need_no_dot(load, text):
    assert load(IMAGES + f"matching: {{tolerance: {text}}}\n").matching.tolerance == 1e-3
    assert load(IMAGES, f"matching.tolerance={text}").matching.tolerance == 1e-3


@pytest.mark.parametrize("text", ["2025-01-31", "2025-02-30", "'1e5'", "'7'", "größe/日本", "a=b", "1e5x"])
def test_names_that_look_like_something_else_stay_names(load, text):
    assert load(IMAGES.replace("runs/mine", text)).run == Path(text.strip("'"))
    assert load(IMAGES, f"run={text}").run == Path(text.strip("'"))


def test_a_quoted_number_is_text_where_text_is_wanted(load):
    assert load(IMAGES.replace("[layer1]", "['1e5', '2']")).model.layers == ("1e5", "2")


def test_paths_keep_their_meaning(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load(IMAGES.replace("runs/mine", "~/runs")).run == Path("/home/somebody/runs")
    folder = IMAGES.replace("source: digits\n  n_images: 60", "source: folder\n  path: {}")
    assert load(folder.format("~/images")).data.path == Path("/home/somebody/images")
    assert load(folder.format("s3://bucket/images")).data.path == "s3://bucket/images"
    assert load(folder.format("relative/images")).data.path == Path("relative/images")


def test_kernels_are_names_or_mappings(load):
    kernels = load(IMAGES + "kernels: [linear, {name: rbf, sigma: 1e2}]\n").kernels
    assert [(kernel.name, kernel.sigma) for kernel in kernels] == [("linear", None), ("rbf", 100.0)]


def test_auto_is_the_default(load):
    config = load(IMAGES + "workers: auto\nmatching: {tile: auto}\n")
    assert config == load(IMAGES)
    assert (config.workers, config.matching.tile) == (None, None)


def test_sizes_in_bytes_have_units(load):
    for text, size in (("1GiB", 2**30), ("512 MB", 512 * 10**6), ("1e9", 10**9), ("20000000", 20_000_000)):
        assert load(IMAGES + f"matching: {{worker_memory: {text}}}\n").matching.worker_memory == size


def test_defaults_are_checked_and_shared_by_nobody():
    one, two = parse_config(DIGITS), parse_config(DIGITS)
    assert one == two
    with pytest.raises(ValueError, match="frozen"):
        one.run = Path("elsewhere")


def test_a_byte_order_mark_is_no_key(load):
    assert load("\ufeff" + IMAGES) == load(IMAGES)


def test_merge_keys_and_anchors_work(load):
    text = IMAGES.replace("data:", "data: &d").replace("60", "60\nqueries:\n  <<: *d\n  seed: 1")
    assert (load(text).queries.n_images, load(text).queries.seed) == (60, 1)


def test_what_alters_the_numbers_is_marked_and_nothing_else():
    config = parse_config(DIGITS)
    assert set(result_fields(config.data)) == set(DigitScenes.model_fields) - {"source"}
    assert set(result_fields(config.model)) == {
        "name",
        "weights",
        "input_size",
        "preprocessing",
        "prompt",
        "seed",
        "precision",
        "compile",
        "jpeg_draft",
    }
    assert set(result_fields(config.features)) == set(StorageConfig.model_fields)
    assert set(result_fields(config.matching)) == {"matcher"}
    assert result_fields(config) == result_fields(config.retrieval) == {}
    # Of these the content is hashed, which says more than the name of a place.
    for source in (
        *("folder", "table", "egoobjects", "cityscapes", "tiny-imagenet", "imagenet"),
        *("voc", "coco", "lvis", "open-images", "webdataset", "parquet", "imagefolder"),
    ):
        data = parse_config({**DIGITS, "data": {"source": source, "path": "x"}}).data
        assert result_fields(data) == {}
    assert ModelConfig.model_fields.keys() - result_fields(config.model).keys() == {
        "layers",
        "batch_size",
        "actors",
    }


def test_controls_that_were_added_are_no_facts_until_they_are_used():
    """Runs from before they came know nothing of them, and go on."""
    added = {"displacement", "arrangement"}
    data = parse_config(DIGITS).data
    assert fingerprint_fields(data) == {
        name: value for name, value in result_fields(data).items() if name not in added
    }
    crops = parse_config({**DIGITS, "data": {"source": "crops", "of": DIGITS["data"], "share": 0.5}}).data
    assert fingerprint_fields(crops) == {"share": 0.5, "of": fingerprint_fields(data)}
    assert fingerprint_fields(crops.model_copy(update={"share": 64 / 84})) == {"of": fingerprint_fields(data)}
    used = DigitScenes(source="digits", digits=2, arrangement="pair")
    assert fingerprint_fields(used).keys() - fingerprint_fields(data).keys() == {"arrangement"}
    model = parse_config(DIGITS).model
    assert fingerprint_fields(model) | {"compile": False, "jpeg_draft": False} == result_fields(model)


def test_only_parameters_that_were_given_reach_the_matcher():
    assert MatchingConfig().model_extra == {}
    assert MatchingConfig(matcher="greedy", tolerance=None).model_extra == {}
    assert MatchingConfig(tolerance=0.0).model_extra == {"tolerance": 0.0}
    assert MatchingConfig(matcher="batch-optimal", window=8).model_extra == {"window": 8}
    for matcher, name, value in (
        ("topk-greedy", "k", 3),
        ("subsample", "seed", 0),
        ("projection", "channels", 2),
    ):
        section = MatchingConfig.model_validate({"matcher": matcher, name: value})
        assert section.model_extra == {name: value}
        assert getattr(section.make_matcher(), name) == value


def test_no_number_in_a_valid_configuration_is_infinite():
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ConfigError):
            parse_config({**DIGITS, "matching": {"task_seconds": value}})
