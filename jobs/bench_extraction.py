"""Measure extraction against a plain loop over timm's model and a DataLoader with as many workers as there are cores.

    python jobs/bench_extraction.py [--models resnet50 vit_base_patch16_224] [--images 20000] [--repeats 3] [--compile]
    python jobs/bench_extraction.py --drafts [--megapixels 12]

Both read the same JPEGs of 224 pixels, which this makes, run a network with random weights, and write the features of
its last stage in float32; both build the network and start their readers within the time that is measured, and on a GPU
both compute in float16. They take turns, and each ratio is that of neighbours in time. What the package does besides
(listing and hashing the images before the model) is named apart. Without a GPU the networks are smaller, and fewer the
images.

With `--drafts`, the package is compared with itself instead, with and without `model.jpeg_draft`, on large JPEGs of
overlapping discs of all sizes, which have about the spectrum of photographs. Then the figures say what drafts change.

Exit status 1 if the features differ by more than the precision explains.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # a checkout need not be installed

import numpy as np
import psutil
import timm
import torch
from PIL import Image, ImageDraw
from scipy.stats import spearmanr
from torch.utils.data import DataLoader, Dataset

import semrsm_dist as srs
from semrsm_dist.features.packaged import PACKAGES
from semrsm_dist.machine import available_cpus
from semrsm_dist.progress import SilentReporter, Stage
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.features import FeatureStore

SIZE, BATCH = 224, 32
LAYERS = {"resnet": "layer4", "vit": "blocks.11", "tf_efficientnet_lite": "blocks.6"}
AGREEMENT = {"cpu": 1e-4, "cuda": 2e-2}
"""Largest difference of features, relative to their norm: the loops sum in another order, on a GPU in float16."""


class Taken(NamedTuple):
    """Seconds on the wall and of all processors, and the features of the first images."""

    wall: float
    processor: float
    features: np.ndarray


class Files(Dataset):
    """Images of a folder as the network takes them."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.paths, self.transform = sorted(folder.rglob("*.jpg")), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


class _Extracted(Exception):  # noqa: N818 - no error
    """The extraction is over, and nothing else is wanted."""


class ExtractionClock(SilentReporter):
    """Measures the extraction, and ends the run after it."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    @contextmanager
    def stage(self, name: str, *args: Any, **options: Any) -> Iterator[Stage]:
        """Pass a stage through; note what it took."""
        begun, worked = time.perf_counter(), processor_seconds()
        with super().stage(name, *args, **options) as shown:
            yield shown
        if name == "extraction":
            self.wall, self.processor = time.perf_counter() - begun, processor_seconds() - worked
            raise _Extracted


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="of timm: a ResNet, a ViT or an EfficientNet-Lite")
    parser.add_argument("--images", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=available_cpus(), help="of the DataLoader")
    parser.add_argument(
        "--compile", action="store_true", help="let the package compile the network (model.compile)"
    )
    parser.add_argument("--drafts", action="store_true", help="measure model.jpeg_draft")
    parser.add_argument("--megapixels", type=float, default=12, help="of an image with --drafts")
    parser.add_argument("--folder", type=Path, help="for images and features; by default a temporary one")
    given = parser.parse_args(arguments)
    if given.drafts:
        given.models, given.images = given.models or ["tf_efficientnet_lite0"], given.images or 24
    models = ["resnet50", "vit_base_patch16_224"] if on_gpu else ["resnet18", "vit_tiny_patch16_224"]
    given.models, given.images = given.models or models, given.images or (20_000 if on_gpu else 256)
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each network."""
    given = parse(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    print(f"{name}, {available_cpus()} cores, torch {torch.__version__}, timm {timm.__version__}")
    size = f"{given.megapixels:g} megapixels" if given.drafts else f"{SIZE} pixels"
    print(f"{given.images} JPEGs of {size}, {given.repeats} turns each, medians")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        images = Path(folder) / "images"
        images.mkdir()
        make = partial(make_photograph, given.megapixels) if given.drafts else make_small
        with ThreadPoolExecutor(available_cpus()) as pool:
            list(
                pool.map(
                    lambda number: make(number).save(images / f"{number:06}.jpg", quality=90),
                    range(given.images),
                )
            )
        if given.drafts:
            return max(compare_drafts(model, images, given) for model in given.models)
        return max(compare(model, images, device, given) for model in given.models)


def make_small(number: int) -> Image.Image:
    """Return an image of smooth random content, as photographs are."""
    coarse = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def make_photograph(megapixels: float, number: int) -> Image.Image:
    """Return a noisy image, 4 : 3 or 3 : 4, of discs whose radii have a density of r^-3: the same at any scale."""
    rng = np.random.default_rng(number)
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = np.array((height * 4 // 3, height) if number % 3 else (height, height * 4 // 3))
    image = Image.new("RGB", tuple(size.tolist()))
    draw = ImageDraw.Draw(image)
    least, most = 3, size.min() / 3
    n_discs = int(1.5 * size.prod() / (np.pi * least**2 * np.log(most / least)))
    radii = np.minimum(most, least / np.sqrt(rng.uniform(size=n_discs)))
    colours = rng.integers(0, 256, (n_discs, 3)).tolist()
    for centre, radius, colour in zip(rng.uniform(size=(n_discs, 2)) * size, radii, colours, strict=True):
        draw.ellipse([*(centre - radius), *(centre + radius)], fill=tuple(colour))
    noise = rng.integers(-8, 9, (size[1], size[0], 1), dtype=np.int16)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def compare_drafts(model: str, images: Path, given: argparse.Namespace) -> int:
    """Measure one network with and without drafts in turn, and print what they change; return 0."""
    layer = layer_of(model)
    weights = "package" if model in PACKAGES else "random"
    whole, drafts = [], []
    for _ in range(given.repeats):
        for taken, jpeg_draft in ((whole, False), (drafts, True)):
            taken.append(run_package(model, layer, images, weights=weights, jpeg_draft=jpeg_draft))
    walls, processors = (
        [getattr(one, key) / getattr(other, key) for one, other in zip(whole, drafts, strict=True)]
        for key in ("wall", "processor")
    )
    features = [taken[0].features for taken in (whole, drafts)]
    change = np.linalg.norm(features[1] - features[0]) / np.linalg.norm(features[0])
    cosines = [srs.similarity_matrix(z)[np.triu_indices(len(z), 1)] for z in features]
    rank = spearmanr(*cosines).statistic
    print(
        f"{model} ({weights}), {layer}: {given.images / statistics.median(one.wall for one in whole):.1f} images/s, as "
        f"drafts {statistics.median(walls):.2f} times as fast ({min(walls):.2f} to {max(walls):.2f}), processor time "
        f"{1 / statistics.median(processors):.2f}; features differ by {change:.1e} of their norm, similarities of "
        f"{len(cosines[0])} pairs by {np.abs(cosines[1] - cosines[0]).mean():.1e} (at most "
        f"{np.abs(cosines[1] - cosines[0]).max():.1e}; their standard deviation is {cosines[0].std():.1e}), rank "
        f"correlation {rank:.4f}"
    )
    return 0


def layer_of(model: str) -> str:
    """Return the last stage of a network."""
    return next(layer for kind, layer in LAYERS.items() if model.startswith(kind))


def compare(model: str, images: Path, device: str, given: argparse.Namespace) -> int:
    """Measure one network both ways in turn; return 1 if the features differ."""
    layer = layer_of(model)
    plain, package = [], []
    for _ in range(given.repeats):
        plain.append(run_plainly(model, layer, images, device, given.workers))
        package.append(run_package(model, layer, images, compile=given.compile))
    ratios = [loop.wall / own.wall for loop, own in zip(plain, package, strict=True)]
    worked = [loop.processor / own.processor for loop, own in zip(plain, package, strict=True)]
    rates = [given.images / statistics.median(each.wall for each in taken) for taken in (plain, package)]
    z, own = plain[0].features, package[0].features
    difference = float(np.linalg.norm(own - z) / np.linalg.norm(z))
    print(
        f"{model}, {layer}: {rates[1]:.0f} images/s, plain loop {rates[0]:.0f}: {statistics.median(ratios):.2f} times "
        f"as fast ({min(ratios):.2f} to {max(ratios):.2f}), processor time {1 / statistics.median(worked):.2f} of the "
        f"loop's; features differ by {difference:.1e} of their norm"
    )
    return int(not difference <= AGREEMENT[device])


def processor_seconds() -> float:
    """Return the processor time of this process, and of those that it has started and that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def run_plainly(model: str, layer: str, images: Path, device: str, workers: int) -> Taken:
    """Extract as one would without this package."""
    begun, worked = time.perf_counter(), processor_seconds()
    torch.manual_seed(0)
    network = timm.create_model(model, pretrained=False).eval().to(device)
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    kept: list[torch.Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    loader = DataLoader(Files(images, transform), BATCH, num_workers=workers, pin_memory=device == "cuda")
    folder, first = Path(tempfile.mkdtemp(dir=images.parent)), None
    half = torch.autocast(device, torch.float16, enabled=device == "cuda")
    with torch.inference_mode(), half:
        for number, batch in enumerate(loader):
            network(batch.to(device, non_blocking=True))
            z = kept.pop()
            z = z.flatten(2).mT if z.ndim == 4 else z[:, network.num_prefix_tokens :]
            features = z.float().cpu().numpy()
            np.save(folder / f"{number}.npy", features)
            first = features if first is None else first
    del loader  # ends its workers
    taken = Taken(time.perf_counter() - begun, processor_seconds() - worked, first)
    shutil.rmtree(folder)
    return taken


def run_package(model: str, layer: str, images: Path, **options: Any) -> Taken:
    """Extract by a run with these options of the model, and measure that stage."""
    run = Path(tempfile.mkdtemp(dir=images.parent)) / "run"
    clock = ExtractionClock()
    document = {
        "run": str(run),
        "data": {"source": "folder", "path": str(images)},
        "model": {"name": model, "weights": "random", "layers": [layer], **options},
        "matching": {"matcher": "greedy"},
    }
    with suppress(_Extracted):
        srs.run(document, reporter=clock)
    features = FeatureStore(RunDirectory(run).features, "images", layer).read(slice(0, BATCH))
    shutil.rmtree(run.parent)
    return Taken(clock.wall, clock.processor, features)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
