"""CLIPSeg through transformers: CLIP's vision tower and, for a prompt, the decoder behind it.

Lüddecke and Ecker, Image Segmentation Using Text and Image Prompts, CVPR 2022. The network gets the interface of timm's
(`feature_info`, `forward_intermediates`, `forward_features`), so that layers are found and read as everywhere.
The vision tower sees only the image. The decoder takes three of its layers and a text: its output
depends on the prompt, which therefore belongs to the model.

transformers is an extra; it is imported only when a network of this family is requested.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.features import checkpoints, hub, registry

Size = tuple[int, int]

PREPROCESSING: dict[str, Any] = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
"""That of the published networks: the whole image, its sides made equal."""

_VISION = {"patch_size": 16}
_TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "CIDAS/clipseg-rd16": {"vision_config": _VISION, "reduce_dim": 16},
    "CIDAS/clipseg-rd64": {"vision_config": _VISION, "reduce_dim": 64},
    "CIDAS/clipseg-rd64-refined": {
        "vision_config": _VISION,
        "reduce_dim": 64,
        "use_complex_transposed_convolution": True,
    },
    "test_clipseg": {
        "vision_config": {**_TINY_TOWER, **_VISION, "image_size": 64, "num_hidden_layers": 4},
        "text_config": {
            **_TINY_TOWER,
            "num_hidden_layers": 2,
            "vocab_size": 64,
            "max_position_embeddings": 16,
        }
        | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        "projection_dim": 32,
        "extract_layers": [0, 1, 2],
        "reduce_dim": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    },
}
"""What differs from the defaults of transformers, so that the architecture is known without a network."""

_PARTS = {
    "clip.vision_model.": "vision.",
    "clip.text_model.": "text.",
    "clip.text_projection.": "text_projection.",
    "decoder.": "decoder.",
}
_UNUSED = ("clip.visual_projection.", "clip.logit_scale")
_VOCABULARY = ("vocab.json", "merges.txt")


class ClipSeg(nn.Module):
    """CLIPSeg with the interface of a timm model: layers of the vision tower, then those of the decoder.

    Parameters
    ----------
    name
        One of `registry.CLIPSEG`.
    tokens
        The prompt, as the tokenizer gives it; without one there is no decoder.

    Attributes
    ----------
    feature_info
        The layers, in network order.
    """

    num_prefix_tokens = 1
    num_classes = 0

    def __init__(self, name: str, tokens: Sequence[int] = ()) -> None:
        super().__init__()
        transformers = _import_transformers(name)
        config = transformers.CLIPSegConfig(**CONFIGS[name])
        self.patch = int(config.vision_config.patch_size)
        self.longest_prompt = int(config.text_config.max_position_embeddings)
        self.pretrained_cfg = {
            "architecture": name,
            **registry.pretrained_cfg(name),
            "transformers": importlib.metadata.version("transformers"),
        }
        if tokens:
            whole = transformers.CLIPSegForImageSegmentation(config)
            self.vision, self.text = whole.clip.vision_model, whole.clip.text_model
            self.text_projection, self.decoder = whole.clip.text_projection, whole.decoder
            self.extracted = tuple(config.extract_layers)
            self.register_buffer("tokens", torch.tensor([list(tokens)]), persistent=False)
        else:
            self.vision = transformers.CLIPSegVisionModel(config.vision_config)
            self.decoder = None
        n_vision = config.vision_config.num_hidden_layers
        n_decoder = len(config.extract_layers) if tokens else 0
        self.feature_info = [
            *({"module": f"vision.encoder.layers.{layer}"} for layer in range(n_vision)),
            *({"module": f"decoder.layers.{layer}"} for layer in range(n_decoder)),
        ]

    @property
    def cls_token(self) -> Tensor:
        """The class token before the first layer."""
        token: Tensor = self.vision.embeddings.class_embedding
        return token

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last layer (B, 1 + S, C), class token first."""
        return self._layers(x, with_decoder=True)[-1]

    forward = forward_features

    def forward_intermediates(
        self,
        x: Tensor,
        *,
        indices: Sequence[int],
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return some layers as (B, C, H, W) without class token; the parameters are those of timm's models.

        With `stop_early` the decoder is left out if none of its layers is requested.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"layers are returned as NCHW, not as {output_fmt}")
        n_vision = len(self.vision.encoder.layers)
        layers = self._layers(x, with_decoder=not stop_early or max(indices) >= n_vision)
        grid = (x.shape[-2] // self.patch, x.shape[-1] // self.patch)
        maps = [layers[index][:, 1:].transpose(1, 2).reshape(len(x), -1, *grid) for index in indices]
        return maps if intermediates_only else (layers[-1], maps)

    def _layers(self, x: Tensor, *, with_decoder: bool) -> list[Tensor]:
        # The first of the hidden states is what goes into the first layer.
        seen = self.vision(pixel_values=x, output_hidden_states=True).hidden_states[1:]
        if self.decoder is None or not with_decoder:
            return list(seen)
        prompt = self.text_projection(self.text(input_ids=self.tokens).pooler_output).expand(len(x), -1)
        activations = [seen[layer] for layer in self.extracted]
        decoded = self.decoder(activations, prompt, output_hidden_states=True).hidden_states[1:]
        return [*seen, *decoded]


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: ClipSeg) -> dict[str, Tensor]:
    """Bring a state dict of transformers into the form of `ClipSeg`; parts that it does not have are left out."""
    parts = dict(_PARTS) if model.decoder is not None else {"clip.vision_model.": "vision."}
    unused = (*_UNUSED, *(_PARTS.keys() - parts.keys()))
    converted = {}
    for name, tensor in state.items():
        part = next((part for part in parts if name.startswith(part)), None)
        if part is not None and not name.endswith(".position_ids"):  # numbers that older files hold
            converted[parts[part] + name.removeprefix(part)] = tensor
        elif part is None and not name.startswith(unused):
            converted[name] = tensor
    return converted


def build(
    name: str, weights: Path | str, prompt: str | None, size: Size | None
) -> tuple[ClipSeg, tuple[int, ...]]:
    """Build a network of the family; return it with the tokens of the prompt.

    Parameters
    ----------
    name
        One of `registry.CLIPSEG`.
    weights
        A file, or one of the words "pretrained" and "random".
    prompt
        For the decoder. The tokenizer's files are looked for beside the weights.
    size
        Height and width of the images; None for the network's own.

    Raises
    ------
    ConfigError
        transformers is not installed, the size does not suit, the prompt is too long, or there are no such weights.
    InputError
        The weights or the tokenizer's files are not here and cannot be downloaded, or are not of this network.
    """
    _import_transformers(name)
    path = _fetch(name, hub.WEIGHTS) if weights == "pretrained" else weights
    beside = weights.parent if isinstance(weights, Path) else None
    tokens = () if prompt is None else _tokenize(name, prompt, beside)
    module = ClipSeg(name, tokens)
    if tokens and size and size[0] != size[1]:
        raise ConfigError(
            f"input_size {size[0]} x {size[1]}: the decoder of {name!r} takes square images only; make both sides "
            "equal, or leave out model.prompt for the vision tower alone"
        )
    if len(tokens) > module.longest_prompt:
        raise ConfigError(
            f"model.prompt: {len(tokens)} tokens, but {name!r} takes {module.longest_prompt} at most; shorten it"
        )
    if isinstance(path, Path):
        checkpoints.load_file(module, path)
    return module, tokens


def _tokenize(name: str, prompt: str, folder: Path | None) -> tuple[int, ...]:
    """Return the tokens of a text; the tokenizer's files are in the folder or, without one, in the hub."""
    advice = f"get {' and '.join(_VOCABULARY)} from https://huggingface.co/{name} and put them beside"
    if folder is None:
        try:
            first, *_ = [_fetch(name, (file,)) for file in _VOCABULARY]
        except InputError as error:
            raise InputError(
                f"model.prompt: the tokenizer of {name!r} cannot be downloaded ({error.__cause__}): {advice} the "
                "weights, and give the path of these as weights (--set model.weights=PATH)"
            ) from error
        folder = first.parent
    missing = [file for file in _VOCABULARY if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"model.prompt: there is no {' and no '.join(missing)} of the tokenizer in {folder}: {advice} the weights "
            "there"
        )
    tokenizer = _import_transformers(name).CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return tuple(int(token) for token in tokenizer(prompt).input_ids)


def _fetch(name: str, files: Sequence[str]) -> Path:
    """Return where the first of these files that the hub has lies after it was downloaded."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only where a download is wanted
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError  # noqa: PLC0415

    cfg = registry.pretrained_cfg(name)
    if not cfg.get("hf_hub_id"):
        raise ConfigError(
            f"model {name!r} has no files to download; set weights: random without a prompt, or give a file as "
            "weights"
        )
    repository, _, revision = cfg["hf_hub_id"].partition("@")
    with hub.downloading(name, cfg, files):
        for file in files:
            try:
                return Path(hf_hub_download(repository, file, revision=revision or None))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
        raise FileNotFoundError(f"the repository has none of {', '.join(files)}")


def _import_transformers(name: str) -> Any:
    try:
        import transformers  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ConfigError(
            f"model {name!r} needs the package transformers, which is not installed: pip install '.[clipseg]'"
        ) from error
    return transformers
