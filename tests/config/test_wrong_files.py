"""Every mistake in the file or its keys is reported at its place, with its remedy."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semrsm_dist.config.schema import RunConfig, load_config, parse_config
from semrsm_dist.errors import ConfigError
from tests.config.conftest import DIGITS, FEATURES, IMAGES, SOURCES, with_data


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
def test_what_is_no_yaml_is_reported_with_its_line(refused, text, where, what):
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
            "job.yaml:8: unknown key 'tolerance'; it belongs to matching: move it there, or remove it; known here: run",
        ),
        (
            FEATURES + "  n_images: 3\n",
            "job.yaml:6: unknown key 'data.n_images'; it belongs to data (source: digits): choose one",
        ),
        (IMAGES + "größe: 3\n", "job.yaml:8: unknown key 'größe'; known here: run, data, queries"),
        (IMAGES + "7: 3\n", "job.yaml:8: unknown key '7'; known here: run, data"),
    ],
)
def test_unknown_keys_are_reported_with_what_was_meant(refused, text, message):
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


def test_all_problems_are_reported_at_once(refused):
    lines = refused(IMAGES.replace("60", "0") + "engine: roy\nmatching: {tile: x, typo: 1}\n")
    assert [line.split(": ")[0] for line in lines] == ["job.yaml:4", "job.yaml:9", "job.yaml:9", "job.yaml:8"]
