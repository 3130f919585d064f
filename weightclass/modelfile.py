"""One file is one model: weights as safetensors, and in its header all that is needed to use them.

The header carries the recipe (TOML), class names, normalisation, image shape and the scorecard's headline, so that a
`model.safetensors` found anywhere can be loaded, judged and traced back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor, nn

from weightclass import config
from weightclass.augment.ops import normalise
from weightclass.device import available
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.files import atomic_write
from weightclass.model import resnet
from weightclass.recipe import Recipe

FORMAT = "weightclass/1"
FILE_NAME = "model.safetensors"


@dataclass
class Classifier:
    """A trained network with what it needs to read pictures and to name its answers."""

    network: nn.Module
    recipe: Recipe
    name: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    facts: dict[str, Any]
    path: Path | None = None

    def logits(self, images: Tensor) -> Tensor:
        """Logits float32 [n, classes] of uint8 images [n, C, H, W] in the network's own size."""
        device = next(self.network.parameters()).device
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self.image_shape:
            raise UserError(
                f"this model takes uint8 images {self.image_shape}, got {images.dtype} {tuple(images.shape[1:])}"
            )
        mean, std = (torch.tensor(values, device=device) for values in (self.mean, self.std))
        return predict.logits(self.network, images.to(device), lambda x: normalise(x, mean, std))

    def predict(self, images: Tensor) -> list[str]:
        """The name of the likeliest class of each uint8 image [n, C, H, W]."""
        return [self.classes[index] for index in self.logits(images).argmax(1).tolist()]


def save(path: Path, model: Classifier) -> int:
    """Write `model` atomically; returns the file's bytes."""
    from safetensors.torch import save as to_bytes

    header = {
        "format": FORMAT,
        "recipe": config.to_toml(_portable(model.recipe)),
        "name": model.name,
        "classes": json.dumps(model.classes),
        "image_shape": json.dumps(model.image_shape),
        "normalisation": json.dumps({"mean": model.mean, "std": model.std}),
        "facts": json.dumps(model.facts, sort_keys=True),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    payload = to_bytes(tensors, header)
    atomic_write(path, payload)
    return len(payload)


def _portable(recipe: Recipe) -> Recipe:
    """Without the place where the data lay: it means nothing elsewhere, and is nobody's business."""
    return structs.replace(recipe, data=structs.replace(recipe.data, path=""))


def load(path: str | Path, on: str = "cpu") -> Classifier:
    """Read a model file, or the one in a run folder, for device `on` ("cpu", "cuda", "mps" or "auto").

    Nothing in the file is executed.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not file.exists():
        raise UserError(f"{path}: no {FILE_NAME} there; give a finished run's folder or a model file")
    try:
        with safe_open(file, "pt") as handle:
            header = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: not a readable safetensors file: {error}") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{file}: its header is not {FORMAT}: train or export it with weightclass")
    device = available(on)
    try:
        return _assemble(file, header, tensors, device)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: its header is damaged ({error!r}): fetch or train it anew") from None


def _assemble(file: Path, header: dict[str, str], tensors: dict[str, Tensor], device: str) -> Classifier:
    recipe = config.build(config.parse_toml(header["recipe"], str(file)), Recipe, str(file))
    classes, shape = tuple(json.loads(header["classes"])), tuple(json.loads(header["image_shape"]))
    normalisation = json.loads(header["normalisation"])
    network = resnet.build(recipe.model, shape, len(classes), seed=0)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{file}: weights and recipe do not fit: {str(error).splitlines()[-1].strip()}") from None
    network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Classifier(
        network=network,
        recipe=recipe,
        name=header["name"],
        classes=classes,
        image_shape=shape,
        mean=tuple(normalisation["mean"]),
        std=tuple(normalisation["std"]),
        facts=json.loads(header["facts"]),
        path=file,
    )
