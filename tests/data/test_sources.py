"""What every data source keeps to, and that one of another distribution is a source like any other."""

import json
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from semrsm_dist.cli.commands import main
from semrsm_dist.config.schema import (
    RunConfig,
    as_config,
    check_sources,
    load_config,
    parse_config,
)
from semrsm_dist.data.source import DataSource, ImageSource
from semrsm_dist.data.sources import SOURCES
from semrsm_dist.data.sources.crops import ShiftedCrops
from semrsm_dist.data.sources.digits import DigitScenes
from semrsm_dist.data.sources.features import FeaturesData
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.pipeline.checking import check_run
from tests.distributions import give, install

MODEL = {"name": "test_resnet", "weights": "random", "layers": ["layer1"]}
TOY = '''
import hashlib
from typing import Annotated, ClassVar, Literal

from PIL import Image

from semrsm_dist.data.entries import ImageEntry, LoadedImage
from semrsm_dist.data.source import ImageSource
from semrsm_dist.fields import AffectsResult, Count


class Greys(ImageSource):
    """Grey images, each a little brighter."""

    source: Literal["greys"] = "greys"
    n_images: Annotated[Count, AffectsResult()] = 3

    def entries(self):
        return [ImageEntry(f"grey-{k}", f"greys:{k}", ("dark" if k < 2 else "bright",)) for k in range(self.n_images)]

    def load(self, entry):
        image = Image.new("RGB", (40, 40), (40 * int(entry.image_id.removeprefix("grey-")),) * 3)
        return LoadedImage(image, "RGB", hashlib.sha256(image.tobytes()).hexdigest(), 4800)
'''
JOB = """\
run: run
data:
  source: crops
  of: {source: greys, n_images: 4}
  shifts: [0, 0.2]
model: {name: test_resnet, weights: random, layers: [layer1]}
"""


POINTS = "[semrsm_dist.data_sources]\n"
LISTED = "return [ImageEntry("
LOADED = "return LoadedImage("
TOYS = {
    "an error of its own": (LISTED, "return 3 / 0 or [ImageEntry(", "validate", 2),
    "no list": (LISTED, "return 3 or [ImageEntry(", "validate", 2),
    "no entries": ("[ImageEntry(", "[(", "validate", 2),
    "labels in a list": ('("dark" if k < 2 else "bright",)', '["dark"]', "validate", 2),
    "a number for an id": ('f"grey-{k}", f"greys', 'k, f"greys', "validate", 2),
    "a generator": (LISTED, "yield from [ImageEntry(", "validate", 0),
    "an error in loading": (LOADED, "raise KeyError('x'); LoadedImage(", "run", 2),
    "a bare image": (LOADED, "return image; LoadedImage(", "run", 2),
    "an error of the disk": (LOADED, "raise OSError(5, 'Input/output error'); LoadedImage(", "run", 1),
    "no load": ("    def load(self", "    def lead(self", "validate", 2),
    "another name": (': Literal["greys"] = "greys"', ': Literal["grey"] = "grey"', "validate", 2),
    "no images": ("class Greys(ImageSource)", "class Greys(DataSource)", "validate", 2),
}
"""What is put in place of what in the toy, the command that uses it, and the command's exit status."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with jobs of a source that works, of one that cannot be loaded, and of each toy: all are installed."""
    home = tmp_path_factory.mktemp("home")
    install(home / "site", "toy", POINTS + "greys = toy:Greys\n", TOY)
    (home / "job.yaml").write_text(JOB)
    (home / "misspelt.yaml").write_text(JOB.replace("n_images", "n_imags"))
    install(home / "site", "broken", POINTS + "broken = broken:Broken\n", "import nowhere_to_be_found\n")
    (home / "digits.yaml").write_text(
        "run: run\ndata: {source: digits}\nmodel: {name: test_resnet, weights: random, layers: [layer1]}\n"
    )
    text = TOY.replace("import ImageSource", "import DataSource, ImageSource")
    for number, (old, new, *_) in enumerate(TOYS.values()):
        assert old in TOY
        name = f"toy{number}"
        toy = text.replace(old, new).replace('["greys"] = "greys"', f'["{name}"] = "{name}"')
        install(home / "site", name, f"{POINTS}{name} = {name}:Greys\n", toy)
        (home / f"{name}.yaml").write_text(JOB.replace("run: run", f"run: {name}").replace("greys", name))
    return home


@pytest.fixture(scope="module")
def answers(home):
    """What the command says of each source, all in one process."""
    on_digits = ["validate", "digits.yaml", "--set"]
    commands = {
        "as it is": ["run", "job.yaml"],
        "misspelt": ["validate", "misspelt.yaml"],
        "beside a broken one": on_digits[:2],
        "misspelt beside a broken one": [*on_digits, "data.n_image=3"],
        "broken": [*on_digits, "data.source=broken"],
        **{
            toy: [command, f"toy{number}.yaml"] for number, (toy, (*_, command, _)) in enumerate(TOYS.items())
        },
    }
    answers = give([(home, each) for each in commands.values()], home / "site")
    return {name: (status, errors) for name, (status, _, errors) in zip(commands, answers, strict=True)}


def test_a_source_of_another_distribution_is_read_cropped_and_run(answers, home):
    status, errors = answers["as it is"]
    assert status == 0, errors
    record = json.loads((home / "run" / "run.json").read_text())
    assert '"images.of.n_images": 4' in json.dumps(record)
    status, errors = answers["misspelt"]
    assert status == 2
    assert "misspelt.yaml:4: unknown key 'data.of.n_imags'; did you mean 'n_images'?" in errors


def test_a_broken_source_hurts_only_those_who_choose_it(answers):
    assert answers["beside a broken one"] == (0, "")
    assert "did you mean 'n_images'" in answers["misspelt beside a broken one"][1]
    status, errors = answers["broken"]
    assert status == 2
    assert (
        "data: data source 'broken' (broken:Broken of the distribution broken 1.0) cannot be loaded" in errors
    )


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        ("an error of its own", "entries raised ZeroDivisionError: division by zero"),
        ("no list", "entries raised TypeError: 'int' object is not iterable"),
        ("no entries", "entries raised TypeError: it returned"),
        ("labels in a list", "entries raised TypeError: ImageEntry.*labels a tuple of str"),
        ("a number for an id", "entries raised TypeError: ImageEntry.image_id=0"),
        (
            "an error in loading",
            "load of image 'grey-0' raised KeyError: 'x'. Nothing of it can be used",
        ),
        ("a bare image", "load of image 'grey-0' raised TypeError: it returned <PIL"),
        ("an error of the disk", "load of image .* raised OSError: .Errno 5. Input/output error"),
    ],
)
def test_a_source_that_lists_or_loads_its_images_wrongly_is_named(answers, toy, words):
    status, errors = answers[toy]
    name = f"toy{list(TOYS).index(toy)}"
    assert status == TOYS[toy][3], errors
    named = rf"data source '{name}' \({name}:Greys of the distribution {name} 1\.0\): {words}"
    assert re.search(named + (".*correct or update" if TOYS[toy][2] == "validate" else ""), errors)
    assert "Traceback" not in errors


def test_a_source_may_yield_its_images(answers):
    assert answers["a generator"] == (0, "")


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        ("no load", "it does not define load"),
        ("another name", "it calls itself 'grey'"),
        ("no images", "it does not derive from ImageSource"),
    ],
)
def test_an_incomplete_source_is_refused_when_it_is_chosen(answers, toy, words):
    status, errors = answers[toy]
    name = f"toy{list(TOYS).index(toy)}"
    assert status == 2
    assert re.search(rf"{name}:Greys of the distribution {name} 1\.0.*{words}", errors)


@pytest.mark.parametrize("name", SOURCES.names())
def test_a_source_names_itself(name):
    source = SOURCES.load(name)
    assert source.model_fields["source"].default == name
    assert source.__doc__


MINIMAL = {
    "digits": {},
    "features": {"layers": {"last": "last.npy"}},
    "crops": {"of": {"source": "crops", "of": {"source": "folder", "path": "s3://bucket/x"}}},
}


@pytest.mark.parametrize("name", SOURCES.names())
def test_a_configured_source_survives_pickling_and_writing_out(name):
    data = {"source": name, **MINIMAL.get(name, {"path": "x"})}
    document = {"run": "r", "data": data} | ({} if name == "features" else {"model": MODEL})
    config = parse_config(document)
    assert type(config.data) is SOURCES.load(name)
    assert pickle.loads(pickle.dumps(config)) == config
    assert RunConfig.from_dict(json.loads(config.model_dump_json())) == config
    assert RunConfig.from_dict(config.model_dump()) == config


def test_crops_take_any_source_of_images_and_nothing_else():
    scenes = DigitScenes(n_images=2)
    twice = ShiftedCrops(of=ShiftedCrops(of=scenes, share=0.8), share=0.5, shifts=(0, 1))
    assert [entry.image_id for entry in twice.entries()] == [
        f"evaluation-00000{k}@0.0000@{shift}" for shift in ("0.0000", "1.0000") for k in (0, 1)
    ]
    assert {twice.read(entry).size for entry in twice.entries()} == {(38, 38)}
    with pytest.raises(ConfigError, match="ShiftedCrops: of: "):
        ShiftedCrops(of=FeaturesData(layers={"a": "a.npy"}))


def test_loading_a_configuration_loads_one_source_and_no_arrays():
    code = (
        "import sys; from semrsm_dist.config.schema import parse_config\n"
        "import semrsm_dist.data.sources as s\n"
        "assert 'semrsm_dist.data.sources.folder' not in sys.modules\n"
        "s.SOURCES.load('folder')\n"
        "print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    late = {
        "torch",
        "ray",
        "timm",
        "zarr",
        "matplotlib",
        "numba",
        "sklearn",
        "semrsm_dist.data.sources.egoobjects",
    }
    assert late.isdisjoint(loaded.split())


# --- configurations in Python ------------------------------------------------------------------------------


def test_a_configuration_is_given_in_three_ways(tmp_path):
    document = {"run": "r", "data": {"source": "digits"}, "model": MODEL}
    config = RunConfig.from_dict(document)
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    for given in (config, document, tmp_path / "job.yaml", str(tmp_path / "job.yaml")):
        assert as_config(given) == config
    assert config == RunConfig(run="r", data=DigitScenes(), model=MODEL)
    assert load_config(tmp_path / "job.yaml") == config
    for given in (3, None, ["run"]):
        with pytest.raises(ConfigError, match=r"expected a configuration \(RunConfig, "):
            as_config(given)


def test_mistakes_in_python_read_as_those_in_a_file():
    with pytest.raises(ConfigError) as caught:
        RunConfig(run="r", data={"source": "digits", "n_images": 0, "sed": 1}, modle=3, workers="all")
    assert str(caught.value).split("\n") == [
        "RunConfig: data.n_images: 0: must be greater than or equal to 1",
        "RunConfig: unknown key 'data.sed'",
        "RunConfig: workers: 'all': expected a whole number",
        "RunConfig: unknown key 'modle'; did you mean 'model'?",
    ]
    with pytest.raises(ConfigError, match="FolderImages: the key 'path' is missing; add it"):
        FolderImages()
    with pytest.raises(ConfigError, match="RunConfig: images need a model; add the section model"):
        RunConfig(run="r", data=DigitScenes())
    with pytest.raises(ValidationError):  # what validates a part within a whole gets each problem by itself
        DigitScenes.model_validate({"n_images": 0})
    assert issubclass(FolderImages, ImageSource) and issubclass(ImageSource, DataSource)


# --- what can be found out beforehand ----------------------------------------------------------------------


def test_places_that_do_not_exist_are_found_before_a_run(tmp_path):
    (tmp_path / "here").mkdir()
    np.save(tmp_path / "there.npy", np.zeros(3))
    away, here = tmp_path / "away", tmp_path / "here"
    features = {
        "source": "features",
        "layers": {"a": tmp_path / "there.npy", "b": away},
        "table": away.as_uri(),
    }
    config = RunConfig.from_dict({"run": "r", "data": features, "queries": features})
    problem = rf"layers\.b: '{away}' does not exist; table: '{away.as_uri()}' does not exist; check the path"
    with pytest.raises(InputError, match=f"data: {problem}\nqueries: {problem}"):
        check_sources(config)
    crops = {"source": "crops", "of": {"source": "folder", "path": away}}
    config = RunConfig.from_dict({"run": "r", "data": crops, "queries": {"source": "digits"}, "model": MODEL})
    with pytest.raises(InputError, match=rf"^data: the image folder '{away}' does not exist; give the path"):
        check_sources(config)
    Image.new("RGB", (4, 4)).save(here / "x.png")
    config = RunConfig.from_dict({"run": "r", "data": {"source": "folder", "path": here}, "model": MODEL})
    check_sources(config)


def test_validate_finds_a_missing_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = "run: run\ndata: {source: folder, path: images}\nmodel: {name: test_resnet, layers: [layer1]}\n"
    (tmp_path / "job.yaml").write_text(job)
    assert main(["validate", "job.yaml"]) == 2
    missing = f"data: the image folder '{tmp_path / 'images'}' does not exist; give the path"
    assert missing in capsys.readouterr().err


def test_validate_finds_features_that_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shape in (("a", (3, 4, 2)), ("b", (2, 4, 2)), ("wide", (3, 4, 5))):
        np.save(f"{name}.npy", np.zeros(shape, np.float32))
    np.save("counts.npy", [4, 2, 4])
    np.save("all.npy", [4, 4, 4])
    (tmp_path / "t.csv").write_text("image_id,labels\nx,\ny,\n")
    features = {"source": "features", "layers": {"l": "a.npy"}}
    base = {"run": "r", "data": features, "matching": {"matcher": "projection"}}

    def problem(**changes):
        check_run(RunConfig.from_dict(base | changes))

    problem(data=features | {"token_counts": {"l": "all.npy"}})
    with pytest.raises(
        ConfigError, match=r"token_counts: the images of layer 'l' differ .* 'projection' cannot"
    ):
        problem(data=features | {"token_counts": {"l": "counts.npy"}})
    with pytest.raises(InputError, match=r"t\.csv: 2 rows, but the features of images hold 3"):
        problem(data=features | {"table": "t.csv"})
    with pytest.raises(InputError, match="different numbers of images"):
        problem(data=features | {"layers": {"l": "a.npy", "m": "b.npy"}})
    with pytest.raises(InputError, match="S = 4 and C = 5 on the side queries"):
        problem(queries=features | {"layers": {"l": "wide.npy"}})
