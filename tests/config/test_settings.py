"""Settings of the command line replace and add, and are named as the place of their mistakes."""

from pathlib import Path

import pytest

from tests.config.conftest import IMAGES, SOURCES


def test_settings_replace_add_and_apply_in_order(load):
    config = load(
        IMAGES, "run=b", "data.n_images=7", "matching.tolerance=1e-4", "run=c", "model.layers=[a, b]"
    )
    assert (config.run, config.data.n_images, config.data.source) == (Path("c"), 7, "digits")
    assert (config.matching.tolerance, config.model.layers) == (1e-4, ("a", "b"))
    assert load(IMAGES + "matching:\n", "matching.tile=4").matching.tile == 4


def test_a_setting_is_reported_as_the_place_of_its_mistake(refused):
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
