"""Features in memory are those of a run, whatever form the images have."""

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features.models import ModelSpec, load_model
from semrsm_dist.features.spec import shipped_architectures
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


def torch_settings():
    cudnn = torch.backends.cudnn
    return torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32


def test_torchs_settings_hold_while_the_model_works_and_are_then_as_before(pictures, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, inside = torch_settings(), []
    module = timm.create_model("test_resnet").eval()
    module.register_forward_pre_hook(lambda *_: inside.append(torch_settings()))
    module.conv1.register_forward_pre_hook(lambda *_: inside.append(torch_settings()))
    srs.extract(module, pictures[:1], "layer4", precision="float32")
    assert torch_settings() == before
    assert set(inside) == {(1, False, True, False)}
    torch.set_num_threads(threads)


def test_a_module_in_memory_gives_the_same_and_is_left_as_it_was(features, pictures):
    module = load_model(ModelSpec("test_resnet", "digits")).module.train()
    module.pretrained_cfg |= {"input_size": (3, 96, 96), "crop_pct": 1.0}
    module.pretrained_cfg |= {
        key: features.model["preprocessing"][key] for key in ("mean", "std", "interpolation")
    }
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = srs.extract(module, pictures, ["layer3", "layer4"], batch_size=2)
    for layer in features:
        np.testing.assert_allclose(found[layer], features[layer], rtol=1e-4, atol=1e-5)
    assert found.model["weights_sha256"] == features.model["weights_sha256"]
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_any_module_of_torch_is_read_with_its_preprocessing(pictures):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 7, 4, stride=4), torch.nn.AdaptiveAvgPool2d(1))

    def transform(image):
        pixels = np.array(image.resize((32, 24)), np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    z = srs.extract(module, pictures, "0", transform=transform)["0"]
    batch = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
    expected = module[0](batch).flatten(2).transpose(1, 2).detach()
    assert z.shape == (N, 6 * 8, 7)
    np.testing.assert_allclose(z, expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"Sequential.*preprocessed.*give transform"):
        srs.extract(module, pictures, "0")
    with pytest.raises(ConfigError, match=r"no layer 'conv1'.*named_modules"):
        srs.extract(module, pictures, "conv1", transform=transform)
    with pytest.raises(
        ConfigError, match=r"transform: expected a float32 tensor of shape \(3, H, W\), got .*\(24,"
    ):
        srs.extract(module, pictures, "0", transform=lambda image: transform(image).permute(1, 2, 0))
    with pytest.raises(ConfigError, match="leave transform out"):
        srs.extract("test_resnet", pictures, "layer4", transform=transform, **MODEL)


def test_an_image_of_16_bits_is_scaled_and_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 96 * 96).reshape(96, 96).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    from_file = srs.extract("test_resnet", [tmp_path / "grey.png"], "layer4", **MODEL)["layer4"]
    opened = srs.extract("test_resnet", [Image.open(tmp_path / "grey.png")], "layer4", **MODEL)["layer4"]
    assert opened.tobytes() == from_file.tobytes()


def test_images_without_finite_features_are_named_by_their_place_among_all(pictures):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 4, stride=4))

    def transform(image):
        value = torch.nan if np.array_equal(np.array(image), pictures[3]) else 1.0
        return torch.full((3, 8, 8), value)

    with pytest.raises(InputError, match=r"NaN or infinite for 1 of the given images, at position 3,"):
        srs.extract(module, pictures, "0", transform=transform, batch_size=2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "none were given"),
        ("image.png", "put it in a list"),
        (Path(__file__).parent, "is a folder, but a sequence of images is expected: list its files"),
        (None, r"images: expected paths.*found NoneType"),
        (7, r"images: expected paths.*found int"),
        (np.zeros((96, 96, 3), np.uint8), r"\(96, 96, 3\), but \(N, H, W, 3\) is expected.*images\[None\]"),
        (np.zeros((5, 96, 96), np.uint8), r"\(N, H, W, 3\) is expected: of grey images.*stack"),
        (np.zeros((2, 96, 96, 3), np.float32), r"images\[0\].*float32.*scale values to 0\.\.255"),
        (np.zeros((2, 3, 96, 96), np.uint8), r"channels last with image\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 96, 96, 4), np.uint8), r"leave out the fourth channel"),
        ([np.zeros((96, 96), np.uint8)], r"repeat the grey channel with numpy\.stack"),
        ([np.zeros((96, 96, 1), np.uint8)], r"repeat the grey channel with image"),
        (["nowhere.png"], r"'nowhere\.png' cannot be read: No such file.*replace it or leave it out$"),
        ([__file__], r"cannot be read: its content is not in a known image format.*leave it out$"),
        ([None], r"images\[0\].*found NoneType"),
        (np.zeros((1, 0, 5, 3), np.uint8), r"image 'images\[0\]' has 5 x 0 pixels.*leave it out"),
        ([Image.new("RGB", (1, 40_000))], r"1 x 40000 pixels, which.* would make 96 x 3840000: .*squash"),
        (np.ma.masked_less(np.zeros((1, 9, 9, 3), np.uint8), 1), r"images\[0\]: some pixels are masked"),
        (["~nobody-of-this-name/image.png"], r"image '~nobody-of-this-name/image\.png' cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    with pytest.raises(InputError, match=message):
        srs.extract("test_resnet", images, "layer4", **MODEL)


class Unsteady(torch.nn.Module):
    """Features that depend on the other images (by their mean), or on chance."""

    def __init__(self, change):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 16, 16)
        self.change = torch.nn.BatchNorm2d(8, track_running_stats=False) if change == "batch" else None
        self.end = torch.nn.Identity()

    def forward(self, batch):
        z = self.conv(batch)
        return self.end(self.change(z) if self.change else torch.nn.functional.dropout(z, 0.5, training=True))


def to_tensor(image):
    return torch.from_numpy(np.array(image.resize((64, 64)), np.float32)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("change", ["batch", "chance"])
def test_features_that_are_not_of_an_image_alone_are_refused(pictures, change):
    with pytest.raises(
        ConfigError, match=r"layer 'end' differs for an image alone and among others .*on chance"
    ):
        srs.extract(Unsteady(change), pictures, "end", transform=to_tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda module: module.half(), r"parameters .* are of torch\.float16, but .*module\.float\(\)"),
        (lambda module: module.double(), r"are of torch\.float64"),
        (lambda module: module.to("meta"), "on the device 'meta', without numbers"),
    ],
)
def test_modules_that_do_not_take_float32_are_refused(pictures, change, message):
    with pytest.raises(ConfigError, match=message):
        srs.extract(change(timm.create_model("test_resnet")), pictures, "layer4")


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            lambda image: to_tensor(image).numpy(),
            r"expected a float32 tensor .* got ndarray float32 \(3, 64, 64\)",
        ),
        (lambda image: to_tensor(image).double(), r"got Tensor torch\.float64"),
        (lambda image: to_tensor(image)[0], r"\(64, 64\)"),
        (lambda image: None, "got NoneType"),
        (
            lambda image: torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1),
            r"it made \(3, 96, 96\) of images\[0\], and \(3, 256, 256\) of another",
        ),
    ],
)
def test_transforms_that_do_not_make_tensors_of_one_size_are_refused(pictures, transform, message):
    with pytest.raises(ConfigError, match=message):
        srs.extract(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16)), pictures, "0", transform=transform)


def test_an_image_that_was_closed_is_refused(paths):
    with Image.open(paths[0]) as image:
        pass
    with pytest.raises(InputError, match=r"'images\[1\]' cannot be read: .*closed.*leave it out"):
        srs.extract("test_resnet", [paths[1], image], "layer4", **MODEL)


def test_objects_of_pillow_that_load_their_pixels_late_may_share_a_file(pictures, features):
    """And be read by several threads: one object many times, and the pages of one file."""
    content = io.BytesIO()
    pages = [Image.fromarray(picture) for picture in pictures]
    pages[0].save(content, "TIFF", save_all=True, append_images=pages[1:])
    opened = []
    for number in range(N):
        opened += [Image.open(content)] * 8
        opened[-1].seek(number)
    found = srs.extract("test_resnet", opened, "layer4", batch_size=N, **MODEL)["layer4"]
    np.testing.assert_allclose(found, features["layer4"].repeat(8, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["La", "LA"])
def test_transparency_is_dropped_however_it_is_multiplied(mode):
    grey = Image.merge("LA", [Image.new("L", (96, 96), value) for value in (100, 255)])
    found = srs.extract("test_resnet", [grey.convert(mode), Image.new("L", (96, 96), 100)], "layer4", **MODEL)
    np.testing.assert_array_equal(*found["layer4"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model: 3: expected the name of a model or a torch.nn.Module"),
        ({"layers": 4}, "layers: 4: expected a list"),
        ({"layers": []}, "layers: .*at least 1"),
        ({"weights": None}, "weights: no value: expected text"),
        ({"input_size": 224.0}, "input_size: 224.0: expected one or two whole numbers"),
        ({"input_size": (96, 0)}, r"input_size\.1: 0: must be greater"),
        ({"batch_size": 2.5}, "batch_size: 2.5: expected a whole number"),
        ({"batch_size": 0}, "batch_size: 0: must be greater"),
        ({"seed": "x"}, "seed: 'x': expected a whole number"),
        ({"device": "gpu"}, "unknown device 'gpu'; choose auto, cpu or cuda"),
        ({"device": 0}, "device: 0: expected text"),
        ({"precision": "half"}, "precision: 'half': must be 'auto', 'float32', 'float16' or 'bfloat16'"),
        ({"transform": "resize"}, "transform: 'resize': must be callable"),
    ],
)
def test_arguments_are_checked_as_those_of_a_configuration(pictures, arguments, message):
    given = {"model": "test_resnet", "images": pictures, "layers": "layer4", **MODEL, **arguments}
    with pytest.raises(ConfigError, match=message):
        srs.extract(**given)


def test_weights_may_be_a_path_object(features, pictures):
    path = shipped_architectures()["test_resnet"]
    found = srs.extract("test_resnet", pictures, "layer4", weights=path, device="cpu")
    assert found["layer4"].tobytes() == features["layer4"].tobytes()


def test_an_unknown_layer_is_refused(pictures):
    with pytest.raises(ConfigError, match="layer4"):
        srs.extract("test_resnet", pictures, "layer44", **MODEL)
