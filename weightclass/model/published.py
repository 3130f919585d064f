"""Other people's CIFAR ResNets become ours: their file is read without running any of it, and the architecture is
inferred from the names and shapes of its weights.

What weights cannot show is assumed as in He et al. 2016: ReLU, strides of 2 that halve the map at every layer but the
first, same padding, an average pool before the linear layer, and batch norm's usual epsilon of 1e-5.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from zipfile import ZipFile

import torch
from msgspec import structs
from torch import Tensor, nn

from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.model.resnet import ResNetConfig

_ALONE = 'ask its owner for the weights alone, torch.save(model.state_dict(), "net.pth")'
_WRAPPERS = ("net", "state_dict", "model", "model_state_dict")
_OPTION_A = "shortcuts without parameters (option A) are not supported, only projections"
_COUNTERS = ("num_batches_tracked", "n_averaged")  # batch norm's and torch's AveragedModel's: no inference reads them


@dataclass(frozen=True)
class Published:
    """An architecture and weights that fit it: `networks.build(config, image_shape, classes)` loads them strictly."""

    config: ResNetConfig
    image_shape: tuple[int, int, int]
    classes: int
    weights: dict[str, Tensor]


# --- the file ----------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a safetensors or torch file, told apart by content; without what wraps them and their
    names (DataParallel, compile, Lightning). Nothing in the file is executed: UserError where it would have to be.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}): give a file of weights") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on old formats
        found = _unwrap(_parse(content, path))
        names = _plain_names([name for name, value in found.items() if isinstance(value, Tensor)])
        tensors = {short: _float32(found[name], name, path) for name, short in names.items()}
    if not tensors or len(tensors) < len(names):
        problem = "the same weights under two prefixes" if tensors else "no weights in it"
        raise UserError(f"{path}: {problem}: {_ALONE}")
    return tensors


def _parse(content: bytes, path: Path) -> Any:
    if content[:4] != b"PK\3\4" and content[:1] + content[2:4] != b"\x80\x8a\n" and content[8:9] != b"{":
        start = f"it begins with {content[:12]!r}" if content else "it is empty"
        raise UserError(f"{path}: neither a safetensors nor a torch file, {start}: fetch it anew, or {_ALONE}")
    try:
        packed = ZipFile(io.BytesIO(content)).infolist() if content[:2] == b"PK" else []
        if sum(entry.file_size for entry in packed) > 4 * len(content) + 2**20:
            raise ValueError("a zip bomb: torch.save compresses no weights")
        if content[8:9] == b"{":
            from safetensors.torch import load

            return load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can fail in any operation, and so with any exception
        text = str(error)
    if "TorchScript" in text:
        raise UserError(f"{path}: a TorchScript program, which is never run here: {_ALONE}")
    if named := re.search(r"GLOBAL ([\w.]{1,100}) ", text):
        never = "no object but tensors and plain values is ever made from a file, for it could run its author's code"
        raise UserError(f"{path}: holds {named[1]}, and {never}: {_ALONE}")
    raise UserError(f"{path}: damaged, or not a file of weights: fetch it anew, or {_ALONE}")


def _unwrap(found: Any) -> Mapping[Any, Any]:
    for _ in range(4):  # not for ever: a dict in a pickle may hold itself
        inner = [found[key] for key in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        found = inner[0] if inner else found
    found = found if isinstance(found, Mapping) else {}
    dicts = [value for value in found.values() if isinstance(value, Mapping) and value]
    alone = [one for one in dicts if all(isinstance(value, Tensor) for value in one.values())]
    return alone[0] if len(alone) == 1 and not any(isinstance(value, Tensor) for value in found.values()) else found


def _plain_names(names: list[Any]) -> dict[Any, str]:
    """Each name without wrappers' prefixes, then without those that all of them share; counters left out."""
    split = {name: [part for part in str(name).split(".") if part not in ("module", "_orig_mod")] for name in names}
    split = {name: parts for name, parts in split.items() if parts and parts[-1] not in _COUNTERS}
    while len({parts[0] for parts in split.values()}) == 1 and all(len(parts) > 2 for parts in split.values()):
        split = {name: parts[1:] for name, parts in split.items()}
    return {name: ".".join(parts) for name, parts in split.items()}


def _float32(tensor: Tensor, name: Any, path: Path) -> Tensor:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if plain and not tensor.is_nested and tensor.is_floating_point():
        whole = tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()  # or it grows when copied
        if whole and (copy := tensor.detach().float().contiguous()).isfinite().all():
            return copy
    raise UserError(f"{path}: {str(name)[:80]!r} is not a plain tensor of finite real numbers: {_ALONE}")


# --- the architecture --------------------------------------------------------------------------------------


def infer(weights: dict[str, Tensor], where: str, image_size: int = 32, pool: str = "") -> Published:
    """The network that `weights` belong to, for square images of `image_size` pixels, and the weights in its names.

    `pool` ("avg(4)", "max(4)", "global") is believed where it fits the linear layer; "" finds the one avg(P) that does.
    Raises UserError, which names `where` (the file), for what is no such network or could be several.
    """
    pairs = [(re.sub(r"^fc\.", "linear.", key).replace(".downsample.", ".shortcut."), w) for key, w in weights.items()]
    shapes = _Shapes({name: tuple(tensor.shape) for name, tensor in pairs}, where)
    if len(shapes.shapes) < len(pairs):
        shapes.refuse("the same weights under two names, such as linear and fc")
    config, channels, classes = shapes.architecture()
    side = 2 ** len(config.blocks)  # large enough for any network; the images' real size decides about the pool only
    expected = networks.build(config, (channels, side, side), classes).state_dict()
    shapes.compare({name: tuple(tensor.shape) for name, tensor in expected.items()})
    config = structs.replace(config, pool=shapes.pool(config, image_size, pool))
    complete = {name: torch.tensor(0) for name in expected} | dict(pairs)  # zeros: counters that were left out
    return Published(config, (channels, image_size, image_size), classes, complete)


@dataclass(frozen=True)
class _Shapes:
    """Shapes by name, and what follows from them; every method refuses what is not supported."""

    shapes: dict[str, tuple[int, ...]]
    where: str

    def refuse(self, problem: str) -> NoReturn:
        raise UserError(f"{self.where}: {problem}")

    def of(self, name: str, axes: int = 4) -> tuple[int, ...]:
        """The shape of the linear layer's weight, or of a convolution's, whose kernel must be square and odd."""
        if name not in self.shapes:
            self.refuse(f"{name} is missing: {_OPTION_A if '.shortcut.' in name else 'the network is not whole'}")
        shape = self.shapes[name]
        if len(shape) != axes or 0 in shape or (axes == 4 and (shape[2] != shape[3] or shape[2] % 2 == 0)):
            self.refuse(f"{name} is {_by(shape)}: expected {axes} axes, none of them empty, and odd square kernels")
        return shape

    def architecture(self) -> tuple[ResNetConfig, int, int]:
        """Everything but the pool; the images' channels; the number of classes."""
        blocks = {match.groups() for name in self.shapes if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
        if "conv1.weight" not in self.shapes or ("1", "0") not in blocks:
            found = ", ".join(repr(name[:80]) for name in list(self.shapes)[:3]) or "nothing"
            self.refuse(f"not named as a CIFAR ResNet: expected conv1, layer1.0.conv1 and so on, found {found}")
        _, channels, stem_kernel, _ = self.of("conv1.weight")
        if stem_kernel == 7 or channels not in (1, 3):
            known = "only CIFAR networks, of 1 or 3 channels and without ImageNet's 7x7 stem, are supported"
            self.refuse(f"conv1 is {stem_kernel}x{stem_kernel} on {channels} channels: {known}")
        layers = [str(i) for i in range(1, len({layer for layer, _ in blocks}) + 1)]
        convolutions = [self.of(f"layer{layer}.0.conv1.weight") for layer in layers]
        skips = [self.of(f"layer{layer}.0.shortcut.0.weight")[2] for layer in layers[1:]]
        config = ResNetConfig(
            blocks=tuple(sum(layer == other for other, _ in blocks) for layer in layers),
            channels=tuple(shape[0] for shape in convolutions),
            kernels=_brief([shape[2] for shape in convolutions]),
            skip_kernels=_brief([*(skips[:1] or [1]), *skips]),  # the first layer has none: any will do
            stem_kernel=stem_kernel,
            pool="global",
            norm="batch" if any(re.search(r"\bbn[12]\.", name) for name in self.shapes) else "none",
        )
        return config, channels, self.of("linear.weight", axes=2)[0]

    def compare(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Refuse the first name too many, the first missing, the first shape other than the layers around imply."""
        if extra := [name for name in self.shapes if name not in expected]:
            self.refuse(f"{extra[0][:80]!r} is no part of a basic CIFAR ResNet of this depth and is not supported")
        for name, shape in expected.items():
            if name not in self.shapes and not name.endswith(_COUNTERS):
                self.refuse(f"{name} is missing: the network is not whole")
            found = self.shapes.get(name, shape)
            if found != shape and name != "linear.weight":
                hint = "its layers do not fit (grouped convolutions are not supported)"
                self.refuse(f"{name} is {_by(found)} where {_by(shape)} was expected: {hint}")

    def pool(self, config: ResNetConfig, size: int, wish: str) -> str:
        """The pool that leaves the s x s pixels a channel that the linear layer takes: s = floor(m / P), m x m being
        the last map."""
        inputs, width, halved = self.of("linear.weight", axes=2)[1], config.channels[-1], 2 ** (len(config.blocks) - 1)
        s = round((inputs / width) ** 0.5)
        takes = f"linear.weight takes {inputs} inputs"
        if inputs != width * s * s:
            self.refuse(f"{takes}, which is no square of pixels for {width} channels")
        m = -(-size // halved) if 2 * size > halved else 0  # 0: images that are too small to be halved so often
        fitting = [p for p in range(m, 0, -1) if m // p == s]
        if not fitting:
            least = s * halved
            self.refuse(f"{takes}, which {size}x{size} images cannot give: add --size {least} or a multiple of it")
        if wish:
            if wish in [f"{kind}({p})" for kind in ("avg", "max") for p in fitting] or (wish == "global" and s == 1):
                return wish
            self.refuse(f'--pool {wish} leaves no {s}x{s} pixels of {m}x{m}: use "avg({fitting[0]})"')
        if m % s:
            choices = " or ".join(f'--pool "avg({p})"' for p in fitting)
            self.refuse(f"weights do not tell which pool leaves {s}x{s} pixels of {m}x{m}: add {choices}")
        return f"avg({m // s})"


def _brief(values: list[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
