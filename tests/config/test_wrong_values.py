"""Every wrong value is reported at its place, with key, value and remedy."""

import pytest
import yaml

from semrsm_dist.config.schema import load_config, parse_config
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.errors import ConfigError
from tests.config.conftest import FEATURES, IMAGES, with_data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits", "data: 'digits': expected keys and values below it"),
        ("data:", "data: no value: expected keys and values below it"),
        ("model: resnet18", "model: 'resnet18': expected keys and values below it"),
        (
            "output: neighbors",
            "output: 'neighbors': expected neighbours, or keys and values; did you mean 'neighbours'?",
        ),
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
            "matching.worker_memory: '1KiB': must be at least 16MiB",
        ),
        (
            "matching: {matcher: auktion}",
            "matching.matcher: 'auktion': expected one of auction, batch-optimal",
        ),
        (
            "matching: {window: 3}",
            "unknown key 'matching.window'; it belongs to matching (matcher: batch-optimal, ",
        ),
        (
            "matching: {matcher: hungarian, tolerance: 0.1}",
            "unknown key 'matching.tolerance'; it belongs to matching (matcher: auction, batch-optimal, median-split, "
            "projection, subsample): choose one of these, or remove the key, which --set matching.tolerance=null does;",
        ),
        ("retrieval: {k: 5}", "retrieval.k: 5: expected a list in brackets, such as [a, b]"),
        ("retrieval: {k: [1, 0]}", "retrieval.k.1: 0: must be greater than or equal to 1"),
    ],
)
def test_wrong_values_are_reported_with_their_key(refused, text, message):
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
        ("digits: [1, 2, 3]", "data.digits: [1, 2, 3]: expected at most 2 items"),
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
        ("[]", ["model.layers: []: expected at least 1 item"]),
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
        "job.yaml:4: data.layers: {}: expected at least 1 item"
    ]


def test_items_of_a_list_have_lines_of_their_own(refused):
    text = IMAGES + "kernels:\n  - linear\n  - cosin\n"
    assert refused(text)[0].startswith("job.yaml:10: kernels.1.name: 'cosin'")


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
def test_mistakes_in_what_crops_are_of_are_reported_at_their_place(refused, old, new, message):
    [line] = refused(CROPS.replace(old, new))
    assert line.startswith(message)


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
