"""Features in memory are those of a run, whatever form the images have."""

import numpy as np
import pytest
import torch
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.store.features import FeatureStore

N = 5
MODEL = {"weights": "digits", "device": "cpu"}


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(1).integers(0, 256, (N, 96, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def features(pictures):
    return srs.extract("test_resnet", pictures, ["layer3", "layer4"], **MODEL)


def test_they_are_those_of_a_run(features, paths, tmp_path):
    config = {
        "run": str(tmp_path / "run"),
        "data": {"source": "folder", "path": str(paths[0].parent)},
        "model": {"name": "test_resnet", "weights": "digits", "layers": ["layer3", "layer4"]},
    }
    run = srs.run(config)
    for layer in run.layers:
        stored = FeatureStore(run.directory.features, "images", layer).read(slice(0, N))
        assert features[layer].tobytes() == np.asarray(stored).tobytes()


@pytest.mark.parametrize("form", ["paths", "texts", "PIL images", "arrays"])
def test_the_form_of_the_images_does_not_matter(form, features, pictures, paths):
    given = {
        "paths": paths,
        "texts": [str(path) for path in paths],
        "PIL images": [Image.fromarray(picture) for picture in pictures],
        "arrays": list(pictures),
    }[form]
    found = srs.extract("test_resnet", given, "layer4", **MODEL)
    assert list(found) == ["layer4"]
    assert found["layer4"].tobytes() == features["layer4"].tobytes()


def test_they_go_into_matching_as_they_are(features):
    similarity = srs.similarity_matrix(features["layer4"])
    assert similarity.shape == (N, N)
    np.testing.assert_allclose(np.diag(similarity), 1)
    assert features.model["weights"] == "digits"


def test_torch_is_left_as_it_was(pictures):
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.set_num_threads(2)
    srs.extract("test_resnet", pictures[:1], "layer4", **MODEL)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before[0])
    assert (
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    ) == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "none were given"),
        ("image.png", "put it in a list"),
        (np.zeros((96, 96, 3), np.uint8), r"\(N, H, W, 3\) is expected"),
        (np.zeros((2, 96, 96, 3), np.float32), r"images\[0\].*float32.*scale values to 0\.\.255"),
        (np.zeros((2, 3, 96, 96), np.uint8), "channels last"),
        (["nowhere.png"], r"'nowhere\.png' cannot be read: No such file"),
        ([None], r"images\[0\].*found NoneType"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        srs.extract("test_resnet", images, "layer4", **MODEL)


def test_an_unknown_layer_is_refused(pictures):
    with pytest.raises(ConfigError, match="layer4"):
        srs.extract("test_resnet", pictures, "layer44", **MODEL)
