"""Every mistake in a configuration is told at its place, with key, value and remedy; what is right is read as meant."""

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.config.matching import MatchingConfig
from semrsm_dist.config.reading import read_document
from semrsm_dist.config.schema import ModelConfig, RunConfig, StorageConfig, load_config, parse_config
from semrsm_dist.data import sources as data_sources
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.data.sources.table import TableImages
from semrsm_dist.errors import ConfigError
from semrsm_dist.fields import fingerprint_fields, result_fields

JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))
FILE = Path(__file__).parents[2] / "jobs" / "digits.yaml"
SOURCES = ", ".join(data_sources.SOURCES.names())
DIGITS = {"run": "r", "data": {"source": "digits"}, "model": {"name": "test_resnet", "layers": ["layer1"]}}
IMAGES = """\
run: runs/mine
data:
  source: digits
  n_images: 60
model:
  name: test_resnet
  layers: [layer1]
"""
FEATURES = """\
run: runs/mine
data:
  source: features
  layers:
    last: last.npy
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, overrides)

    return load


@pytest.fixture
def refused(load):
    """Return the lines of the message, with the file's folder cut off."""

    def refused(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        assert caught.value.exit_code == 2
        return [
            line[line.find("job.yaml") :] if "job.yaml" in line else line
            for line in str(caught.value).split("\n")
        ]

    return refused


def with_data(line):
    return IMAGES.replace("n_images: 60", line)


# --- what is right ---------------------------------------------------------------------------------------


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


# --- settings --------------------------------------------------------------------------------------------


def test_settings_replace_add_and_apply_in_order(load):
    config = load(
        IMAGES, "run=b", "data.n_images=7", "matching.tolerance=1e-4", "run=c", "model.layers=[a, b]"
    )
    assert (config.run, config.data.n_images, config.data.source) == (Path("c"), 7, "digits")
    assert (config.matching.tolerance, config.model.layers) == (1e-4, ("a", "b"))
    assert load(IMAGES + "matching:\n", "matching.tile=4").matching.tile == 4


def test_a_setting_is_told_as_the_place_of_its_mistake(refused):
    assert refused(IMAGES, "matching.tolerence=1") == [
        "--set matching.tolerence=1: unknown key 'matching.tolerence'; did you mean 'tolerance'?"
    ]
    assert refused(IMAGES, "data.n_images=many") == [
        "--set data.n_images=many: data.n_images: 'many': expected a whole number"
    ]
    assert refused(IMAGES + "matching:\n  tile: 3\n", "matching={tile: x}") == [
        "--set matching={tile: x}: matching.tile: 'x': expected a whole number"
    ]
    assert refused(IMAGES, "data.source=tabel") == [
        f"--set data.source=tabel: data.source: 'tabel': expected one of {SOURCES}; did you mean 'table'?"
    ]
    [line] = refused(IMAGES, "kernels.0.name=rbf")
    assert line.startswith("--set kernels.0.name=rbf: kernels: ")
    assert "expected a list" in line


@pytest.mark.parametrize("setting", ["", "x", "=3", ".=3", "a..b=3", ".run=3", "run.=3", "matching.tile"])
def test_a_setting_needs_a_key_and_a_value(refused, setting):
    [line] = refused(IMAGES, setting)
    assert line == f"--set {setting}: expected key=value, for example --set matching.tolerance=1e-4"


def test_a_setting_cannot_go_below_a_value(refused):
    assert refused(IMAGES, "run.x=3") == [
        "--set run.x=3: 'run' is not a section with keys, but 'runs/mine'; set the whole of 'run'"
    ]
    [line] = refused(IMAGES + "kernels: [rbf]\n", "kernels.0.sigma=3")
    assert line.startswith("--set kernels.0.sigma=3: 'kernels' is not a section")


def test_a_setting_must_be_yaml(refused):
    [line] = refused(IMAGES, "run={")
    assert line.startswith("--set run={: not valid YAML: ")


# --- the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("run: a\n\tdata: b\n", ":2", "'\\t'"),
        ("run: [a\nb: c\n", ":2", "expected ',' or ']'"),
        ("run: 'a\n", ":2", "found unexpected end of stream"),
        ("run: a\n---\nrun: b\n", ":2", "another document"),
        ("run: !!python/name:os.system x\n", ":1", "python/name"),
        ("? [a]\n: b\n", ":1", "unhashable key"),
        ("run: a\ndata: *nobody\n", ":2", "undefined alias"),
        ("run: a\x00b\n", "", "#x0000"),
        (f"run: {'9' * 5000}\n", "", "5000 digits"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(refused, text, where, what):
    first = refused(text)[0]
    assert first.startswith(f"job.yaml{where}: not valid YAML: ")
    assert what in first


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("# only a comment\n", "nothing"),
        ("- a\n", "['a']"),
        ("run\n", "'run'"),
        ("3\n", "3"),
    ],
)
def test_what_has_no_keys_is_refused(refused, text, found):
    assert refused(text) == [f"job.yaml: expected keys and values such as `run: runs/mine`, found {found}"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"nothing.yaml: the configuration cannot be read .*; check the path"
    ):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("run: größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: not text in UTF-8 .*save the file as UTF-8"):
        load_config(latin)


def test_a_key_stands_once(refused):
    assert refused(IMAGES + "engine: local\nengine: ray\n") == [
        "job.yaml:9: the key 'engine' is already in line 8; remove one of them"
    ]
    assert refused(FEATURES + "    last: other.npy\n") == [
        "job.yaml:6: the key 'data.layers.last' is already in line 5; remove one of them"
    ]
    assert "'matching.tile' is already in line 8" in refused(IMAGES + "matching: {tile: 1, tile: 2}\n")[0]


def test_an_alias_of_itself_ends(refused):
    assert "alias" in refused("run: &a\n  b: *a\n")[0]
    assert "alias" in refused("run: &a [*a]\n")[0]
    assert "nested too deeply" in refused("run: " + "[" * 5000)[0]


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IMAGES + "modle: 3\n", "job.yaml:8: unknown key 'modle'; did you mean 'model'?"),
        (with_data("n_image: 3"), "job.yaml:4: unknown key 'data.n_image'; did you mean 'n_images'?"),
        (
            FEATURES + "  tabel: x\n",
            "job.yaml:6: unknown key 'data.tabel'; did you mean 'table'?",
        ),
        (IMAGES + "  wieghts: x\n", "job.yaml:8: unknown key 'model.wieghts'; did you mean 'weights'?"),
        (IMAGES + "features: {dtyp: x}\n", "job.yaml:8: unknown key 'features.dtyp'; did you mean 'dtype'?"),
        (
            IMAGES + "matching:\n  matcher: batch-optimal\n  windows: 3\n",
            "job.yaml:10: unknown key 'matching.windows'; did you mean 'window'?",
        ),
        (
            IMAGES + "retrieval: {kernels: rbf}\n",
            "job.yaml:8: unknown key 'retrieval.kernels'; it belongs to the top",
        ),
        (
            IMAGES + "kernels:\n  - rbf\n  - name: rbf\n    sigm: 3\n",
            "job.yaml:11: unknown key 'kernels.1.sigm'; did",
        ),
        (
            IMAGES + "tolerance: 1e-3\n",
            "job.yaml:8: unknown key 'tolerance'; it belongs to matching; known here: run",
        ),
        (
            FEATURES + "  n_images: 3\n",
            "job.yaml:6: unknown key 'data.n_images'; it belongs to data (source: digits); known here",
        ),
        (IMAGES + "größe: 3\n", "job.yaml:8: unknown key 'größe'; known here: run, data, queries"),
        (IMAGES + "7: 3\n", "job.yaml:8: unknown key '7'; known here: run, data"),
    ],
)
def test_unknown_keys_are_told_with_what_was_meant(refused, text, message):
    [line] = refused(text)
    assert line.startswith(message)


@pytest.mark.parametrize(
    "name", ["float", "int", "none", "a[b]", "[key]", "digits", "features.x", "'ü'", "'a b'"]
)
def test_no_name_is_hidden_or_breaks_the_message(refused, name):
    """Such names look like what pydantic itself puts into the location of a problem."""
    bare = name.strip("'")
    [line] = refused(IMAGES + f'"{bare}": 3\n')
    assert line.startswith(f"job.yaml:8: unknown key {bare!r}")
    [line] = refused(with_data(f'"{bare}": 3')) if bare != "digits" else refused(with_data("'digits.': 3"))
    assert line.startswith(f"job.yaml:4: unknown key 'data.{bare}")
    [line] = refused(FEATURES.replace("last: last.npy", f'"{bare}": 3'))
    assert line == f"job.yaml:5: data.layers.{bare}: 3: expected a path; write it in quotes"


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=12))
def test_any_unknown_key_gets_one_line_that_names_it(name):
    if name in RunConfig.model_fields:
        return
    with pytest.raises(ConfigError) as caught:
        parse_config({**DIGITS, name: 1})
    assert repr(name) in str(caught.value)
    assert str(caught.value).startswith("configuration: unknown key ")


@pytest.mark.parametrize("source", ["digits", "folder", "table", "features"])
def test_a_layer_may_bear_the_name_of_a_source(load, refused, source):
    text = FEATURES.replace("last: last.npy", f"{source}: 3")
    assert refused(text) == [f"job.yaml:5: data.layers.{source}: 3: expected a path; write it in quotes"]
    assert load(text.replace(": 3", ": x.npy")).data.layers == {source: Path("x.npy")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (IMAGES.replace("run: runs/mine", "# nothing"), "job.yaml: the key 'run' is missing; add it"),
        ("run: a\nmodel: {name: x, layers: [y]}\n", "job.yaml: the key 'data' is missing; add it"),
        (
            IMAGES.replace("source: digits", "seed: 1"),
            f"job.yaml:2: the key 'data.source' is missing; add it: one of {SOURCES}",
        ),
        (
            IMAGES.replace("source: digits", "source:"),
            f"job.yaml:3: data.source: None: expected one of {SOURCES}",
        ),
        (
            with_data("x: 1").replace("digits", "Digits"),
            "job.yaml:3: data.source: 'Digits': expected one of cityscapes",
        ),
        (
            IMAGES.replace("digits", "[digits]"),
            "job.yaml:3: data.source: ['digits']: expected one of cityscapes",
        ),
        ("run: a\ndata: {source: folder}\n", "job.yaml:2: the key 'data.path' is missing; add it"),
        ("run: a\ndata: {source: table}\n", "job.yaml:2: the key 'data.path' is missing; add it"),
        ("run: a\ndata: {source: features}\n", "job.yaml:2: the key 'data.layers' is missing; add it"),
        (
            FEATURES + "queries: {source: features}\n",
            "job.yaml:6: the key 'queries.layers' is missing; add it",
        ),
        (IMAGES.replace("  name: test_resnet\n", ""), "job.yaml:5: the key 'model.name' is missing; add it"),
        (IMAGES + "kernels:\n - sigma: 3\n", "job.yaml:9: the key 'kernels.0.name' is missing; add it"),
        (with_data("scale: [3]"), "job.yaml:4: the key 'data.scale.1' is missing; add it"),
    ],
)
def test_missing_keys_are_named(refused, text, message):
    assert refused(text)[0].startswith(message)


def test_all_problems_are_told_at_once(refused):
    lines = refused(IMAGES.replace("60", "0") + "engine: roy\nmatching: {tile: x, typo: 1}\n")
    assert [line.split(": ")[0] for line in lines] == ["job.yaml:4", "job.yaml:9", "job.yaml:9", "job.yaml:8"]


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits", "data: 'digits': expected keys and values below it"),
        ("data:", "data: no value: expected keys and values below it"),
        ("model: resnet18", "model: 'resnet18': expected keys and values below it"),
        ("matching:", "matching: no value: expected keys and values below it"),
        ("run:", "run: no value: expected a path"),
        ("run: ''", "run: '': expected a path"),
        ("run: 5", "run: 5: expected a path; write it in quotes"),
        ("run: [a]", "run: ['a']: expected a path"),
        (
            "run: ftp://host/run",
            "run: 'ftp://host/run': expected a path in a file system, or a folder in an object",
        ),
        (
            "run: s3://bucket",
            "run: 's3://bucket': expected a path in a file system, or a folder in an object store",
        ),
        ("run: ~nobody-of-this-name/x", "run: '~nobody-of-this-name/x': expected a path: "),
        ("engine: rey", "engine: 'rey': expected one of local, ray; did you mean 'ray'?"),
        ("engine: off", "engine: False: expected text; write it in quotes"),
        ("unreadable: refused", "unreadable: 'refused': must be 'refuse' or 'skip'; did you mean 'refuse'?"),
        ("workers: 0", "workers: 0: must be greater than or equal to 1"),
        ("workers: all", "workers: 'all': expected a whole number"),
        ("workers: true", "workers: True: expected a number"),
        ("workers: 1.5", "workers: 1.5: expected a whole number"),
        ("address: 5", "address: 5: expected text; write it in quotes"),
        ("kernels: cosine", "kernels: 'cosine': expected a list in brackets, such as [a, b]"),
        (
            "kernels: [cosin]",
            "kernels.0.name: 'cosin': must be 'linear', 'cosine' or 'rbf'; did you mean 'cosine'?",
        ),
        (
            "kernels: [cosine, cosine]",
            "duplicate kernels: cosine, cosine; remove the repeated one",
        ),
        (
            "kernels: [rbf, {name: rbf, sigma: 2}]",
            "duplicate kernels: rbf, rbf; remove the repeated",
        ),
        (
            "kernels: [{name: cosine, sigma: 2}]",
            "kernels.0: sigma belongs to the kernel rbf, not to cosine; remove it",
        ),
        ("kernels: [{name: rbf, sigma: 0}]", "kernels.0.sigma: 0: must be greater than 0"),
        ("kernels: [{name: rbf, sigma: .inf}]", "kernels.0.sigma: inf: expected a finite number"),
        ("kernels: [{name: rbf, sigma: .nan}]", "kernels.0.sigma: nan: expected a finite number"),
        ("matching: {tolerance: .nan}", "matching.tolerance: nan: expected a finite number"),
        ("matching: {tolerance: -1e-3}", "matching.tolerance: -0.001: must be greater than or equal to 0"),
        ("matching: {tolerance: small}", "matching.tolerance: 'small': expected a number"),
        ("matching: {tolerance: yes}", "matching.tolerance: True: expected a number"),
        ("matching: {task_seconds: .inf}", "matching.task_seconds: inf: expected a finite number"),
        ("matching: {task_seconds: 0}", "matching.task_seconds: 0: must be greater than 0"),
        (
            "matching: {matcher: median-split, window: 0}",
            "matching.window: 0: must be greater than or equal to 1",
        ),
        (
            "matching: {worker_memory: 1 parsec}",
            "matching.worker_memory: '1 parsec': expected a size such as 512MiB or 1GiB",
        ),
        (
            "matching: {worker_memory: 1KiB}",
            "matching.worker_memory: '1KiB': must be greater than or equal to 167",
        ),
        (
            "matching: {matcher: auktion}",
            "matching.matcher: 'auktion': expected one of auction, batch-optimal",
        ),
        (
            "matching: {window: 3}",
            "unknown key 'matching.window'; it belongs to matching (matcher: batch-optimal, ",
        ),
        ("retrieval: {k: 5}", "retrieval.k: 5: expected a list in brackets, such as [a, b]"),
        ("retrieval: {k: [1, 0]}", "retrieval.k.1: 0: must be greater than or equal to 1"),
    ],
)
def test_wrong_values_are_told_with_their_key(refused, text, message):
    lines = {
        "run": "run: r",
        "data": "data: {source: digits}",
        "model": "model: {name: test_resnet, layers: [x]}",
    }
    key = text.split(":")[0]
    lines[key] = text
    place = f"job.yaml:{list(lines).index(key) + 1}"
    assert refused("\n".join(lines.values()))[0].startswith(f"{place}: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n_images: 0", "data.n_images: 0: must be greater than or equal to 1"),
        ("n_images: true", "data.n_images: True: expected a number"),
        (
            "digits: [4, 1]",
            "data.digits: [4, 1]: expected [smallest, largest], both positive; swap or correct them",
        ),
        ("digits: [1, 2, 3]", "data.digits: [1, 2, 3]: expected at most 2 of them"),
        ("scale: 3", "data.scale: 3: expected a list in brackets, such as [a, b]"),
        ("scale: [4, 2.5]", "data.scale: [4, 2.5]: expected [smallest, largest]"),
        ("scale: [true, 2]", "data.scale.0: True: expected a number"),
        ("scale: [.nan, 2]", "data.scale.0: nan: expected a finite number"),
        ("overlap: 2", "data.overlap: 2: must be less than or equal to 1"),
        ("split: train", "data.split: 'train': must be 'training' or 'evaluation'; did you mean 'training'?"),
        ("seed: -1", "data.seed: -1: must be greater than or equal to 0"),
    ],
)
def test_wrong_values_of_digit_scenes(refused, line, message):
    [told] = refused(with_data(line))
    assert told.startswith(f"job.yaml:4: {message}")


@pytest.mark.parametrize(
    ("layers", "lines"),
    [
        ("{a: b}", ["model.layers: {'a': 'b'}: expected a list in brackets, such as [a, b]"]),
        ("[]", ["model.layers: []: expected at least 1 of them"]),
        ("[1, 2]", [f"model.layers.{i}: {i + 1}: expected text; write it in quotes" for i in range(2)]),
    ],
)
def test_layers_are_a_list_of_names(refused, layers, lines):
    assert refused(IMAGES.replace("[layer1]", layers)) == [f"job.yaml:7: {line}" for line in lines]


def test_one_layer_needs_no_brackets():
    config = parse_config(yaml.safe_load(IMAGES.replace("[layer1]", "layer1")))
    assert config.model.layers == ("layer1",)


def test_features_and_models_do_not_mix(refused):
    assert refused(FEATURES + "model: {name: x, layers: [y]}\n") == [
        "job.yaml:6: ready-made features need no model; remove the section model"
    ]
    assert refused("run: a\ndata: {source: digits}\n") == [
        "job.yaml:2: images need a model; add the section model with name, weights and layers"
    ]
    [line] = refused(IMAGES + "queries: {source: features, layers: {layer1: x.npy}}\n")
    assert line.startswith("job.yaml:8: data and queries must both be images or both be ready-made features")
    [line] = refused(FEATURES + "queries: {source: features, layers: {first: x.npy, last: y.npy}}\n")
    assert line.startswith("job.yaml:6: data and queries must name the same layers; only one has first: ")


def test_features_are_local_files(refused):
    [line] = refused(FEATURES.replace("last.npy", "s3://bucket/last.npy"))
    assert line.startswith(
        "job.yaml:5: data.layers.last: 's3://bucket/last.npy': expected a path in a file system"
    )
    assert refused(FEATURES.replace("\n    last: last.npy", " {}")) == [
        "job.yaml:4: data.layers: {}: expected at least 1 of them"
    ]


def test_items_of_a_list_have_lines_of_their_own(refused):
    text = IMAGES + "kernels:\n  - linear\n  - cosin\n"
    assert refused(text)[0].startswith("job.yaml:10: kernels.1.name: 'cosin'")


# --- what a change means ---------------------------------------------------------------------------------


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


CROPS = """\
run: runs/mine
data:
  source: crops
  of:
    source: digits
    n_images: 60
  shifts: [0, 0.25]
model: {name: test_resnet, layers: [layer1]}
"""


def test_crops_are_of_another_source(load):
    data = load(CROPS).data
    assert data.of == DigitScenes(source="digits", n_images=60)
    assert load(CROPS, "data.of={source: folder, path: x}").data.of == FolderImages(source="folder", path="x")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "n_images: 60",
            "n_imags: 60",
            "job.yaml:6: unknown key 'data.of.n_imags'; did you mean 'n_images'?",
        ),
        (
            "n_images: 60",
            "n_images: 0",
            "job.yaml:6: data.of.n_images: 0: must be greater than or equal to 1",
        ),
        (
            "source: digits",
            "source: digit",
            "job.yaml:5: data.of.source: 'digit': expected one of cityscapes, coco, crops, digits",
        ),
        (
            "source: digits",
            "source: features",
            "job.yaml:5: data.of.source: 'features': expected one of cityscapes",
        ),
        (
            "shifts: [0, 0.25]",
            "shifts: [-1]",
            "job.yaml:7: data.shifts.0: -1: must be greater than or equal to 0",
        ),
        ("shifts: [0, 0.25]", "shift: [0]", "job.yaml:7: unknown key 'data.shift'; did you mean 'shifts'?"),
        (
            "  of:\n    source: digits\n    n_images: 60\n",
            "",
            "job.yaml:2: the key 'data.of' is missing; add it",
        ),
    ],
)
def test_mistakes_in_what_crops_are_of_are_told_at_their_place(refused, old, new, message):
    [line] = refused(CROPS.replace(old, new))
    assert line.startswith(message)


def test_only_parameters_that_were_given_reach_the_matcher():
    assert MatchingConfig().parameters == {}
    assert MatchingConfig(matcher="greedy", tolerance=None).parameters == {}
    assert MatchingConfig(tolerance=0.0).parameters == {"tolerance": 0.0}
    assert MatchingConfig(matcher="batch-optimal", window=8).parameters == {"window": 8}
    for matcher, name, value in (
        ("topk-greedy", "k", 3),
        ("subsample", "seed", 0),
        ("projection", "channels", 2),
    ):
        section = MatchingConfig.model_validate({"matcher": matcher, name: value})
        assert section.parameters == {name: value}


def test_no_number_in_a_valid_configuration_is_infinite():
    for value in (math.inf, -math.inf, math.nan):
        with pytest.raises(ConfigError):
            parse_config({**DIGITS, "matching": {"task_seconds": value}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x93NUMPY\x01\x00", "not text in UTF-8 (byte 0): a configuration is a YAML file"),
        (b"\x00\x01", "not valid YAML"),
        (b"", "found nothing"),
        (b"- a\n" * 10_000, "found ['a', 'a'"),
        (None, "the configuration cannot be read"),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_line(tmp_path, content, words):
    path = tmp_path / "job.yaml"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        load_config(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: load_config(None),
        lambda: load_config(3),
        lambda: load_config({"run": "r"}),
        lambda: load_config("a\0b"),
        lambda: load_config("nowhere.yaml", "workers=2"),
        lambda: load_config("jobs/digits.yaml", "workers=2"),
        lambda: load_config("jobs/digits.yaml", [3]),
        lambda: parse_config(3),
        lambda: parse_config(None),
        lambda: parse_config(["run"]),
    ],
)
def test_arguments_of_wrong_types_are_refused(call):
    with pytest.raises(ConfigError):
        call()


def test_an_option_of_the_command_is_reported_as_such():
    with pytest.raises(ConfigError, match=r"^--workers=0: workers: 0: must be greater"):
        load_config("jobs/digits.yaml", ["--workers=0"])


@pytest.mark.parametrize("side", ["data", "queries"])
@pytest.mark.parametrize(
    "source", [{"source": "digits"}, {"source": "crops", "of": {"source": "folder", "path": "."}}]
)
def test_drafts_are_of_files_alone(side, source):
    sides = {"data": {"source": "folder", "path": "."}, "queries": {"source": "folder", "path": "."}}
    document = {
        "run": "r",
        **sides,
        "model": {"name": "test_resnet", "layers": ["layer1"], "jpeg_draft": True},
    }
    assert parse_config(document).model.jpeg_draft
    with pytest.raises(ConfigError, match=rf"model\.jpeg_draft .* source {source['source']} \({side}\)"):
        parse_config(document | {side: source})
