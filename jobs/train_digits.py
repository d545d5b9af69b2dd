"""Train a tiny timm network on scenes of digits; the weights that ship with semrsm_dist come from here.

    python jobs/train_digits.py                        # both networks, under ten minutes on two cores
    python jobs/train_digits.py --model test_resnet --steps 500 --out /tmp/weights

Each network learns which of the ten digits a scene shows (multi-label, binary cross-entropy). The
convolutional one starts on scenes of one digit and goes up to four. The transformer needs more help to
start at all within minutes: its position embedding begins as sines, Muon trains its matrices, and at first
each token that lies on a digit also has to name it; that second loss fades out and is gone for the last
part of the training. The accuracy reported is on scenes of digits that training never saw.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from semrsm_dist.data.handwriting import N_CLASSES
from semrsm_dist.data.sources.digits import DigitScenes, Scene

CANVAS = 96
MEAN, STD = 0.12, 0.16  # of the scenes' pixels, on the scale 0 to 1
MAX_DIGITS = 4
Network = Any  # a timm model; timm does not declare the attributes of its models
IGNORED = -100  # class of tokens without a digit
WEIGHTS = Path(__file__).parent.parent / "semrsm_dist" / "features" / "weights"


@dataclass(frozen=True)
class Recipe:
    """How one architecture is built and trained."""

    model_kwargs: dict[str, Any]
    steps: int
    batch: int
    optimiser: str  # timm's name
    learning_rate: float
    interpolation: str
    single: float  # share of the steps on scenes of one digit
    ramp: float  # share of the steps after which scenes have up to MAX_DIGITS
    tokens: float  # share of the steps over which the loss on tokens fades out
    weight_decay: float = 0.02
    warm_up: float = 0.15  # share of the steps in which the learning rate rises


RECIPES = {
    "test_resnet": Recipe(
        model_kwargs={},
        steps=1000,
        batch=64,
        optimiser="adamw",
        learning_rate=4e-3,
        interpolation="bilinear",
        single=0.15,
        ramp=0.35,
        tokens=0.0,
    ),
    # With the usual patches of 16 pixels a digit is two patches wide, and 36 tokens are few to match.
    "test_vit": Recipe(
        model_kwargs={"img_size": CANVAS, "patch_size": 12, "num_heads": 4, "global_pool": "avg"},
        steps=1600,
        batch=64,
        optimiser="nmuon",
        learning_rate=6e-3,
        interpolation="bicubic",
        single=0.0,
        ramp=0.0,
        tokens=0.8,
    ),
}


def build_model(architecture: str, recipe: Recipe) -> Network:
    """Return the untrained network with one output for each digit."""
    model: Network = timm.create_model(
        architecture, pretrained=False, num_classes=N_CLASSES, in_chans=3, **recipe.model_kwargs
    )
    share = (1 + MAX_DIGITS) / 2 / N_CLASSES  # of the labels are true: start from there
    nn.init.constant_(model.get_classifier().bias, math.log(share / (1 - share)))
    if hasattr(model, "pos_embed"):
        set_sine_positions(model)
    return model


@torch.no_grad()
def set_sine_positions(model: Network) -> None:
    """Start the learned position embedding from sines of row and column, which the default noise hides."""
    height, width = model.patch_embed.grid_size
    frequencies = 100 ** -torch.linspace(0, 1, model.embed_dim // 4)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    sines = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    model.pos_embed[:, model.num_prefix_tokens :] = 0.5 * sines


def draw_batch(scenes: DigitScenes, indices: range) -> tuple[Tensor, Tensor, list[Scene]]:
    """Return normalised images (B, 3, canvas, canvas), targets (B, 10) of 0 and 1, and the layouts."""
    layouts = [scenes.scene(index) for index in indices]
    pixels = np.empty((len(indices), scenes.canvas, scenes.canvas), dtype=np.float32)
    targets = np.zeros((len(indices), N_CLASSES), dtype=np.float32)
    for row, scene in enumerate(layouts):
        pixels[row] = scenes.render(scene)
        targets[row, [p.digit for p in scene.placements]] = 1
    grey = (torch.from_numpy(pixels) / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1), torch.from_numpy(targets), layouts


def token_classes(layouts: list[Scene], grid: tuple[int, int]) -> Tensor:
    """Return the digit that each token lies on (B, tokens), `IGNORED` for background and where boxes meet."""
    classes = np.full((len(layouts), *grid), IGNORED, dtype=np.int64)
    for row, scene in enumerate(layouts):
        covered = np.zeros(grid, dtype=int)
        for p in scene.placements:
            box = tuple(
                slice(round(start * n / CANVAS), round((start + p.size) * n / CANVAS))
                for start, n in zip((p.top, p.left), grid, strict=True)
            )
            classes[row][box] = p.digit
            covered[box] += 1
        classes[row][covered > 1] = IGNORED
    return torch.from_numpy(classes).flatten(1)


def token_loss(model: Network, features: Tensor, layouts: list[Scene]) -> Tensor:
    """Return the cross-entropy of naming, from each token that lies on a digit, that digit."""
    tokens = model.fc_norm(features[:, model.num_prefix_tokens :])
    classes = token_classes(layouts, model.patch_embed.grid_size)
    return nn.functional.cross_entropy(
        model.head(tokens).flatten(0, 1), classes.flatten(), ignore_index=IGNORED
    )


def digits_at(progress: float, recipe: Recipe) -> int:
    """Return the largest number of digits in a training scene at this share of the training."""
    if progress >= recipe.ramp:
        return MAX_DIGITS
    risen = (progress - recipe.single) / (recipe.ramp - recipe.single)
    return 1 + int(np.clip(np.ceil(risen * (MAX_DIGITS - 1)), 0, MAX_DIGITS - 1))


def train(model: Network, recipe: Recipe, seed: int) -> None:
    """Train in place; every step sees new scenes, a little more varied than the ones to be analysed."""
    optimiser = create_optimizer_v2(
        model, recipe.optimiser, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warm_up
    )
    criterion = nn.BCEWithLogitsLoss()
    stages = {
        most: DigitScenes(
            n_images=recipe.steps * recipe.batch,
            digits=(1, most),
            canvas=CANVAS,
            scale=(2.25, 4.25),
            overlap=0.25,
            split="training",
            seed=seed,
        )
        for most in range(1, MAX_DIGITS + 1)
    }
    model.train()
    started, running = time.perf_counter(), 0.0
    for step in range(recipe.steps):
        most = digits_at(step / recipe.steps, recipe)
        images, targets, layouts = draw_batch(
            stages[most], range(step * recipe.batch, (step + 1) * recipe.batch)
        )
        features = model.forward_features(images)
        loss = criterion(model.forward_head(features), targets)
        on_tokens = 1 - step / (recipe.steps * recipe.tokens) if recipe.tokens else 0
        total = loss + on_tokens * token_loss(model, features, layouts) if on_tokens > 0 else loss
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            seconds = time.perf_counter() - started
            print(
                f"step {step + 1:5d}  up to {most} digits  loss {running / (step % 100 + 1):.4f}  {seconds:.0f} s",
                flush=True,
            )
            running = 0.0


@torch.inference_mode()
def evaluate(model: Network, n_images: int, batch: int = 100) -> dict[str, Any]:
    """Return the held-out accuracy, overall, per label and of whole sets, on scenes of held-out digits."""
    scenes = DigitScenes(n_images=n_images, digits=(1, MAX_DIGITS), canvas=CANVAS, split="evaluation", seed=1)
    model.eval()
    hits = []
    for first in range(0, n_images, batch):
        images, targets, _ = draw_batch(scenes, range(first, min(first + batch, n_images)))
        hits.append((model(images) > 0) == (targets > 0.5))
    correct = torch.cat(hits).numpy()
    return {
        "accuracy": round(float(correct.mean()), 4),
        "accuracy_per_label": {
            str(k): round(float(share), 4) for k, share in enumerate(correct.mean(axis=0))
        },
        "exact_set_accuracy": round(float(correct.all(axis=1).mean()), 4),
        "n_images": n_images,
    }


def save(
    model: Network, architecture: str, recipe: Recipe, seed: int, held_out: dict[str, Any], path: Path
) -> None:
    """Write the weights with all that is needed to rebuild the network and its preprocessing."""
    metadata = {
        "architecture": architecture,
        "model_kwargs": json.dumps(recipe.model_kwargs),
        "num_classes": str(N_CLASSES),
        "classes": json.dumps([str(digit) for digit in range(N_CLASSES)]),
        "outputs": "labels",  # yes or no to each: several digits may be there
        "input_size": json.dumps([3, CANVAS, CANVAS]),
        "mean": json.dumps([MEAN] * 3),
        "std": json.dumps([STD] * 3),
        "interpolation": recipe.interpolation,
        "crop_pct": "1.0",
        "seed": str(seed),
        "steps": str(recipe.steps),
        "recipe": json.dumps(asdict(recipe)),
        "held_out": json.dumps(held_out),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial, metadata)
    partial.replace(path)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=[*RECIPES, "all"], default="all")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="folder of the weights (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    parser.add_argument("--batch", type=int, help="scenes a step (default: the recipe's)")
    parser.add_argument("--evaluate-on", type=int, default=2000, metavar="N", help="held-out scenes")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train, evaluate and save what the command line asks for."""
    options = parse_arguments(argv)
    torch.set_num_threads(options.threads)
    for architecture in RECIPES if options.model == "all" else [options.model]:
        changes = {key: value for key in ("steps", "batch") if (value := getattr(options, key)) is not None}
        recipe = Recipe(**{**asdict(RECIPES[architecture]), **changes})
        torch.manual_seed(options.seed)
        model = build_model(architecture, recipe)
        print(
            f"{architecture}: {sum(p.numel() for p in model.parameters())} parameters, {recipe.steps} steps"
        )
        started = time.perf_counter()
        train(model, recipe, options.seed)
        seconds = time.perf_counter() - started
        held_out = evaluate(model, options.evaluate_on)
        path = options.out / f"{architecture}.digits.safetensors"
        save(model, architecture, recipe, options.seed, held_out, path)
        print(f"{architecture}: trained in {seconds:.0f} s; held out: {json.dumps(held_out)}")
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
