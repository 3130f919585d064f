"""One file is one model: weights as safetensors, and in its header all that is needed to use them.

The header carries the recipe (TOML), class names, normalisation, image shape and the scorecard's headline, so that a
`model.safetensors` found anywhere can be loaded, judged and traced back; an exported file (.onnx, .pte ...) carries the
same and answers as if it were the model. Other people's weights load too; what they do not say about themselves,
whoever loads them has to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn

from weightclass import champions, config
from weightclass.augment.ops import normalise
from weightclass.augment.pipeline import Augment
from weightclass.data import images
from weightclass.data.images import Fit
from weightclass.data.sources import CIFARS, Data
from weightclass.data.store import Stored
from weightclass.device import available
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.evaluation.views import Views, once
from weightclass.files import atomic_write
from weightclass.model import networks, published
from weightclass.recipe import Recipe
from weightclass.runlog import Progress
from weightclass.runtimes.runner import SUFFIXES as EXPORTED
from weightclass.runtimes.runner import Runner, runner
from weightclass.trackers import Track
from weightclass.training.distill import HASH, Distill

FORMAT = "weightclass/1"
FILE_NAME = "model.safetensors"
EXPORTS = "export"
"""The folder in a run's folder that its exported files go to."""


class Prediction(NamedTuple):
    """A network's answer for one picture: the likeliest class, its probability in 0..1, and the next likeliest too."""

    label: str
    confidence: float
    top: tuple[tuple[str, float], ...]
    """(label, confidence), likeliest first; as many as were asked for."""


class Exported(nn.Module):
    """An exported file in the network's place: pixels (normalised images where it is not `raw`) to logits."""

    def __init__(self, opened: Runner) -> None:
        super().__init__()
        self.runner = opened

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(torch.uint8) if self.runner.raw else images
        return torch.from_numpy(self.runner(images.contiguous().numpy()))


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

    @property
    def home(self) -> Path:
        """The folder of its run, as far as its file's place tells; a champion has none: what is made of it goes to
        runs/NAME, not into the package."""
        above = self.path.parent if self.path else Path()
        if self.path and above.resolve() == champions.FOLDER.resolve():
            return Path("runs", self.path.stem)
        return above.parent if above.name == EXPORTS else above

    def logits(self, pixels: Tensor | Stored, views: Views = once, progress: Progress | None = None) -> Tensor:
        """Logits float32 [n, classes] on the CPU, of uint8 `pixels` [n, C, H, W] in the network's own size."""
        if pixels.dtype != torch.uint8 or tuple(pixels.shape[1:]) != self.image_shape:
            raise UserError(
                f"this model takes uint8 images {self.image_shape}, got {pixels.dtype} {tuple(pixels.shape[1:])}"
            )
        return predict.logits(self.network, pixels, self._prepare, views=views, progress=progress).cpu()

    def _prepare(self, pixels: Tensor) -> Tensor:
        if isinstance(self.network, Exported) and self.network.runner.raw:
            return pixels.float()  # it normalises inside; whole numbers, which views may shift and mirror
        return normalise(pixels, *(torch.tensor(values, device=pixels.device) for values in (self.mean, self.std)))

    def predict(self, pictures: Any, top: int = 1) -> list[Prediction]:
        """The `top` likeliest classes of each picture.

        `pictures` is uint8 [n, C, H, W] in the network's own size, or pictures of any size: a list of paths, Pillow
        images or uint8 arrays ([height, width] or [height, width, 3]), an array of them, or a single one.
        """
        if top < 1:
            raise UserError(f"top = {top}: ask for one class at least")
        if not (isinstance(pictures, Tensor) and pictures.ndim == 4):
            read = [self.read(picture) for picture in ([pictures] if _is_one(pictures) else pictures)]
            pictures = torch.stack(read) if read else torch.empty(0, *self.image_shape, dtype=torch.uint8)
        return answers(self.logits(pictures), self.classes, top)

    def read(self, picture: Any, fit: Fit | None = None) -> Tensor:
        """One picture as uint8 [C, H, W], made to fit as the training images were (or as `fit` says)."""
        if isinstance(picture, Tensor):
            return picture  # in the network's own size, which `logits` checks
        if isinstance(picture, np.ndarray):
            picture = _from_array(picture)
        return torch.from_numpy(images.read(picture, self.image_shape, fit or self.recipe.data.fit))


def _is_one(pictures: Any) -> bool:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim == 2 or (pictures.ndim == 3 and pictures.shape[2] in (1, 3, 4))
    return isinstance(pictures, str | Path | Tensor) or hasattr(pictures, "convert")  # a Pillow image


def _from_array(picture: np.ndarray) -> Any:
    from PIL import Image

    try:
        return Image.fromarray(picture.squeeze(2) if picture.shape[2:] == (1,) else picture)
    except (TypeError, ValueError):
        kind = f"{picture.dtype} {list(picture.shape)}"
        raise UserError(f"an array of {kind} is no picture: give uint8 [height, width] or [height, width, 3]") from None


def answers(logits: Tensor, classes: Sequence[str], top: int = 1) -> list[Prediction]:
    """What logits [n, classes] say, likeliest class first."""
    confidences, indices = logits.softmax(1).topk(min(top, len(classes)), 1)
    rows = zip(indices.tolist(), confidences.tolist(), strict=True)
    ranked = (tuple((classes[int(place)], share) for place, share in zip(*row, strict=True)) for row in rows)
    return [Prediction(*row[0], top=row) for row in ranked]


# --- our own files -----------------------------------------------------------------------------------------


def header(model: Classifier) -> dict[str, str]:
    """All that travels with the weights, in any format."""
    # Without the places of data, teachers and trackers: they mean nothing elsewhere, and are nobody's business.
    data, told = structs.replace(model.recipe.data, path=""), model.recipe.distill
    hashed = tuple(each for each in told.teachers if each.startswith(HASH))
    distill = structs.replace(told, teachers=hashed, cache="") if hashed else Distill()
    recipe = structs.replace(model.recipe, data=data, distill=distill, track=Track())
    return {
        "format": FORMAT,
        "recipe": config.to_toml(recipe),
        "name": model.name,
        "classes": json.dumps(model.classes),
        "image_shape": json.dumps(model.image_shape),
        "normalisation": json.dumps({"mean": model.mean, "std": model.std}),
        "facts": json.dumps(model.facts, sort_keys=True),
    }


def save(path: Path, model: Classifier, half: bool = False) -> int:
    """Write `model` atomically; returns the file's bytes.

    `half`: the weights of convolutions and linear layers as fp16. Biases and all of norms, which is 1-D, stay float32.
    """
    from safetensors.torch import save as to_bytes

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    payload = _sorted(to_bytes(tensors, header(model)))
    atomic_write(path, payload)
    return len(payload)


def _sorted(payload: bytes) -> bytes:
    """The same file with its header's keys in order, which safetensors shuffles: equal models make equal files."""
    size = int.from_bytes(payload[:8], "little")
    text = json.dumps(json.loads(payload[8 : 8 + size]), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + payload[8 + size :]


def load(
    path: str | Path,
    on: str = "auto",
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    pool: str = "",
    size: int = 0,
) -> Classifier:
    """Read a model file, the one in a run folder, a champion by its name ("5m"; a place called so is "./5m"), an
    exported file, or a published state dict, for device `on` ("cpu", "cuda", "mps"; exported files run on the CPU).

    A published one (.pt, .pth, .safetensors; .onnx where it takes floats) needs the `mean` and `std` its images were
    normalised with, one number a channel in units of 0..1, sometimes its `pool`, and the `size` of its images where
    that is not 32. Nothing in any file is executed. Raises UserError.
    """
    path = champions.find(path) or path
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    if not str(path) or not file.exists():
        raise UserError(f"{path}: no {FILE_NAME} there; give a finished run's folder or a model file, or a champion")
    if file.suffix.lower() in images.SUFFIXES:
        raise UserError(f"{path}: a picture, no model: the model comes first")
    opened = _opened(file, on) if file.suffix.lower() in EXPORTED else None
    header, tensors = (opened.header, {}) if opened else _ours(file)
    if not header:
        said = tuple(mean), tuple(std)
        model = _peer(file, opened, *said, size) if opened else _published(file, *said, pool, size)
    elif mean or std or pool or size:
        raise UserError(f"{file}: says itself how its images were prepared: leave out --mean, --std, --pool and --size")
    else:
        try:
            model = _assemble(file, header, tensors, opened)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: its header is damaged ({error!r}): fetch or train it anew") from None
    on = "cpu" if opened else available(on)
    model.network.to(on, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return model


def _opened(file: Path, on: str) -> Runner:
    if on not in ("auto", "cpu"):
        raise UserError(f"{file}: an exported file runs on the CPU: leave out --device {on}")
    return runner(file)


def _ours(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a file that we wrote; empty for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        file.open("rb").close()  # safetensors takes every refusal of the system for a missing file
        with safe_open(file, "pt") as handle:
            header = handle.metadata() or {}
            if header.get("format", "").startswith("weightclass/"):
                return header, {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        if file.suffix == ".safetensors":
            raise UserError(f"{file}: not a readable safetensors file: {error}") from None
    return {}, {}


def _assemble(file: Path, header: dict[str, str], tensors: dict[str, Tensor], opened: Runner | None) -> Classifier:
    if header["format"] != FORMAT:
        raise UserError(f"{file}: its format is {header['format']}, this version reads {FORMAT}")
    recipe = config.build(config.parse_toml(header["recipe"], str(file)), Recipe, str(file))
    told = msgspec.json.decode
    classes = told(header["classes"], type=tuple[str, ...])
    shape = told(header["image_shape"], type=tuple[int, int, int])
    normalisation = told(header["normalisation"], type=dict[str, tuple[float, ...]])
    if opened:
        network: nn.Module = Exported(opened)
    else:
        network = networks.build(recipe.model, shape, len(classes))  # without memory: a damaged recipe may ask for much
        weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise UserError(f"{file}: weights and recipe do not fit: {str(error).splitlines()[-1].strip()}") from None
    return Classifier(
        network=network,
        recipe=recipe,
        name=header["name"],
        classes=classes,
        image_shape=shape,
        mean=normalisation["mean"],
        std=normalisation["std"],
        facts=told(header["facts"], type=dict[str, Any]),
        path=file,
    )


# --- other people's ----------------------------------------------------------------------------------------


def _published(file: Path, mean: tuple[float, ...], std: tuple[float, ...], pool: str, size: int) -> Classifier:
    found = published.infer(published.read(file), str(file), size or 32, pool)
    network = networks.build(found.config, found.image_shape, found.classes)
    network.load_state_dict(found.weights, assign=True)
    model = _foreign(file, network, found.image_shape, found.classes, mean, std)
    model.recipe = structs.replace(model.recipe, model=found.config)
    return model


def _peer(file: Path, opened: Runner, mean: tuple[float, ...], std: tuple[float, ...], size: int) -> Classifier:
    """Somebody's ONNX file."""
    channels, height, width = (side or size or 32 for side in opened.image_shape)
    if size and (height, width) != (size, size):
        raise UserError(f"{file}: takes images of {height}x{width}: leave out --size")
    if opened.raw and (mean or std):
        raise UserError(f"{file}: takes pixels as they are: leave out --mean and --std")
    unchanged = (0.0,) * channels, (1.0,) * channels
    shape = channels, height, width
    model = _foreign(file, Exported(opened), shape, opened.classes, *(unchanged if opened.raw else (mean, std)))
    model.path = file
    return model


def _foreign(
    file: Path,
    network: nn.Module,
    shape: tuple[int, int, int],
    classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Classifier:
    """With the class names of the set it most likely is of."""
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if len(mean) != shape[0] or len(std) != shape[0]:
        raise UserError(
            f"{file}: does not say how its images were normalised: give --mean and --std with {shape[0]} number(s) "
            "each (of 0..1), for example CIFAR-10's usual --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010"
        )
    likely = {which.classes: (name, which.names) for name, which in CIFARS.items()} if shape[0] == 3 else {}
    name, names = likely.get(classes, ("folder", tuple(f"class {label}" for label in range(classes))))
    augment = config.build({"mean": list(mean), "std": list(std)}, Augment, "--mean, --std")
    recipe = Recipe(data=config.build({"name": name}, Data, "data"), augment=augment)
    return Classifier(network, recipe, file.stem, names, shape, mean, std, facts={"published": True})
