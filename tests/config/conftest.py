"""Configurations that the tests alter, and how they are read."""

import pytest

from semrsm_dist.config.schema import load_config
from semrsm_dist.data import sources as data_sources
from semrsm_dist.errors import ConfigError

FEATURES = """\
run: runs/mine
data:
  source: features
  layers:
    last: last.npy
"""
IMAGES = """\
run: runs/mine
data:
  source: digits
  n_images: 60
model:
  name: test_resnet
  layers: [layer1]
"""
DIGITS = {"run": "r", "data": {"source": "digits"}, "model": {"name": "test_resnet", "layers": ["layer1"]}}
SOURCES = ", ".join(data_sources.SOURCES.names())


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
