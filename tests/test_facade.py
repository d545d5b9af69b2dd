"""The public face: what `import semrsm_dist` offers, its documentation, and that it changes nothing."""

import json
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs


def test_every_public_name_can_be_had_and_nothing_else_shows():
    names = [name for name in dir(srs) if not name.startswith("__")]
    assert {"extract", "match", "run", "Run", "Match", "TopK", "Evidence", "ConfigError"} <= set(names)
    for name in names:
        assert getattr(srs, name).__name__.removeprefix("semrsm_dist.") == name
        assert getattr(srs, name).__doc__
    assert not {"Any", "TYPE_CHECKING", "annotations", "importlib"} & set(names)


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'similarity'"):
        srs.similarity  # noqa: B018


def test_the_version_is_that_of_the_distribution():
    assert srs.__version__[0].isdigit()


def test_its_help_fits_a_screen_and_names_everything():
    text = pydoc.plain(pydoc.render_doc(srs))
    assert len(text.splitlines()) <= 60
    errors = {name for name in dir(srs) if name.endswith("Error")} - {"SemrsmError"}
    assert all(name in text for name in set(dir(srs)) - errors - {"__doc__", "__version__"})


def test_a_run_is_what_a_mapping_or_a_file_says(tmp_path):
    document = {
        "run": str(tmp_path / "run"),
        "data": {"source": "digits", "n_images": 4},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]},
    }
    run = srs.run(document)
    assert run.summary()["work"]["matching"] == {"found": 0, "computed": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(document))
    for again in (str(tmp_path / "run.yaml"), tmp_path / "run.yaml", srs.RunConfig.from_dict(document)):
        assert srs.run(again).summary()["work"]["matching"] == {"found": 1, "computed": 0}
    with pytest.raises(srs.ConfigError, match="found 3"):
        srs.run(3)
    for wrong in (tmp_path / "run", str(tmp_path / "run")):
        with pytest.raises(
            srs.ConfigError, match=r"a run directory, not a config.*open_run.*continue it with"
        ):
            srs.run(wrong)
    for option, words in (("engine", "choose one by its name"), ("reporter", "leave it out")):
        with pytest.raises(srs.ConfigError, match=f"^{option}: 'x': expected a.*{words}"):
            srs.run(document, **{option: "x"})
    for path in (None, 3, b"run"):
        with pytest.raises(srs.ConfigError, match="expected the path of a run directory"):
            srs.open_run(path)
    for wrong in (None, 3, ["layer4"], "layer5"):
        for arguments in ((wrong,), ("layer4", wrong), ("layer4", "cosine", wrong)):
            with pytest.raises(srs.ConfigError, match=r"unknown (layer|kernel|kind) .*known are (?!\[)"):
                run.similarity(*arguments)
        with pytest.raises(srs.ConfigError, match=r"unknown side .*known are images"):
            run.manifest(wrong)
    for sigma in ("x", [1.0], True, 0, -1.0):
        with pytest.raises(srs.ConfigError, match=r"sigma.*positive"):
            run.similarity("layer4", "rbf", sigma=sigma)


def test_a_warning_is_logged_once_where_nothing_is_reported(tmp_path, caplog):
    z = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    z[1] = 0
    np.save(tmp_path / "z.npy", z)
    data = {"source": "features", "layers": {"last": str(tmp_path / "z.npy")}}
    run = srs.run({"run": str(tmp_path / "run"), "data": data})
    (warning,) = run.summary()["warnings"]
    assert [message for message in caplog.messages if message == warning] == [warning]


STATE = """
import os, signal, sys, warnings
sys.path.insert(0, {root!r})
import numpy, torch, zarr

def state():
    return {{
        "zarr": zarr.config.to_dict() if hasattr(zarr.config, "to_dict") else dict(zarr.config.config),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "cudnn": [getattr(torch.backends.cudnn, name) for name in ("benchmark", "deterministic", "allow_tf32")],
        "numpy": numpy.geterr(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "environment": {{k: v for k, v in os.environ.items() if not k.startswith(("KMP_", "NUMEXPR_"))}},
    }}

import copy, importlib.util, pkgutil
import ray, timm, matplotlib, sklearn, numba  # what these change themselves is theirs
if importlib.util.find_spec("transformers"):
    import transformers
before = copy.deepcopy(state())
import semrsm_dist
names = [module.name for module in pkgutil.walk_packages(semrsm_dist.__path__, "semrsm_dist.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
after = state()
print(len(names), [key for key in before if before[key] != after[key]])
"""


@pytest.mark.slow
def test_importing_any_module_changes_nothing_global():
    root = str(Path(srs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", STATE.format(root=root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    count, changed = done.stdout.strip().split(" ", 1)
    assert int(count) > 100
    assert changed == "[]"


def test_results_that_hold_arrays_are_equal_to_themselves_alone():
    z = np.random.default_rng(0).normal(size=(3, 4, 5))
    for make in (
        lambda: srs.match(z[0], z[1]),
        lambda: srs.top_k(z, k=1),
        lambda: srs.Features({"a": z}, {}),
    ):
        one, other = make(), make()
        assert one == one and one != other
        assert len({one, other}) == 2


@pytest.mark.parametrize("value", [[], {}, 0, "yes", np.zeros(3), np.zeros(0)], ids=repr)
@pytest.mark.parametrize("name", ["stop", "reporter"])
def test_a_run_refuses_what_cannot_stop_or_report_before_it_begins(tmp_path, name, value):
    config = {
        "run": str(tmp_path / "run"),
        "data": {"source": "digits", "n_images": 4},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer4"]},
    }
    with pytest.raises(srs.ConfigError, match=f"^{name}: "):
        srs.run(config, **{name: value})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"device": b"x"}, srs.ConfigError),
        ({"seed": 10**39}, srs.ConfigError),
        ({"images": np.array("a")}, srs.InputError),
    ],
    ids=str,
)
def test_extraction_refuses_arguments_by_name(options, error):
    images = np.zeros((1, 96, 96, 3), np.uint8)
    with pytest.raises(error, match=next(iter(options))):
        srs.extract("test_resnet", **({"images": images, "layers": "layer4", "weights": "digits"} | options))
