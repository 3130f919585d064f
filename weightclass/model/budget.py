"""What a network weighs, known before it is trained: parameters, MACs, bytes and peak activations against a budget.

Everything is counted on the meta device, in milliseconds and without memory. MACs are those of convolutions and
linear layers (half of `torch.utils.flop_counter`'s FLOPs).
"""

from __future__ import annotations

import io
import math
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightclass.config import Table, parse_quantity
from weightclass.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SUMMED = ("params", "macs", "bytes_fp32", "bytes_fp16", "bytes_int8")
SIZES = {"fp32": "bytes_fp32", "fp16": "bytes_fp16", "int8": "bytes_int8", "activations": "activations"}
NORMS = (nn.BatchNorm2d,)  # folded into the convolution before them in an int8 file


class Budget(Table, kw_only=True):
    """The recipe's [budget] table. A network must stay *under* every limit that is set; "" sets none."""

    params: int | str = ""
    """Trainable parameters: "5M" admits at most 4,999,999."""
    macs: int | str = ""
    """Multiply-accumulates of one image, such as "1.2G"."""
    bytes_fp32: int | str = ""
    """Weights and norm statistics at four bytes each, such as "20MB" or "512KiB"."""
    bytes_fp16: int | str = ""
    """The same at two bytes each."""
    bytes_int8: int | str = ""
    """The same as an int8 file: see `Weights.bytes_int8`."""
    activations: int | str = ""
    """Peak bytes of activations in a float32 inference of one image."""

    def __post_init__(self) -> None:
        for key in self.__struct_fields__:
            try:
                self.limit(key)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None

    def limit(self, key: str) -> int | None:
        """The limit as a number; None where none is set."""
        value = getattr(self, key)
        return None if value == "" else parse_quantity(value)


@dataclass(frozen=True)
class Row:
    """One layer, or a group of them: `shape` is the output's without the batch axis, `macs` are for one image.

    Bytes are counted as in `Weights`; `activations` is the most that lived since the layer before it ended.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    macs: int
    bytes_fp32: int
    bytes_fp16: int
    bytes_int8: int
    activations: int


@dataclass(frozen=True)
class Weights:
    """A network on the scales. Totals bear the names of the `Budget` keys they are compared with."""

    rows: tuple[Row, ...]
    """Every layer that has parameters, in the order of definition."""
    params: int
    """Trainable parameters."""
    macs: int
    """Multiply-accumulates of convolutions and linear layers for one image."""
    bytes_fp32: int
    """4 x (parameters + floating buffers, which are the norms' running means and variances)."""
    bytes_fp16: int
    """2 x the same."""
    bytes_int8: int
    """Convolutions and linear layers: 1 byte a weight + 4 bytes of scale + 4 bytes of bias an output channel, norms
    being folded into weight and bias; 4 bytes for each parameter of any other layer."""
    activations: int
    """Peak bytes of live tensors, the image included and parameters not, in a float32 inference of one image as
    eager PyTorch runs it. A runtime that folds the norms needs less."""


# --- weighing ----------------------------------------------------------------------------------------------


def weigh(model: nn.Module, image_shape: tuple[int, int, int]) -> Weights:
    """Weigh `model` (meant to be on the meta device) on one image of `image_shape` (C, H, W)."""
    shapes: dict[str, tuple[int, ...]] = {}
    macs: Counter[str] = Counter()
    alive: Counter[str] = Counter()
    memory = _LiveBytes(model)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            shapes[name] = tuple(output.shape[1:])
            macs[name] += _macs(module, output)
            alive[name] = max(alive[name], memory.lap())

        return hook

    layers = {name: module for name, module in model.named_modules() if _own(module)}
    hooks = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    try:
        _infer(model, image_shape, memory)
    finally:
        for hook in hooks:
            hook.remove()
    rows = tuple(
        Row(
            name=name,
            kind=_kind(module),
            shape=shapes.get(name, ()),
            params=_own(module),
            macs=macs[name],
            bytes_fp32=4 * _numbers(module),
            bytes_fp16=2 * _numbers(module),
            bytes_int8=_int8_bytes(module),
            activations=alive[name],
        )
        for name, module in layers.items()
    )
    totals = {key: sum(getattr(row, key) for row in rows) for key in SUMMED}
    return Weights(rows=rows, activations=memory.peak, **totals)


def _numbers(module: nn.Module) -> int:
    """What a file holds of `module` itself: parameters and floating buffers."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return sum(t.numel() for t in own if t.is_floating_point())


def _own(module: nn.Module) -> int:
    """Parameters that belong to `module` itself, not to its children."""
    return sum(p.numel() for p in module.parameters(recurse=False))


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return f"{height}x{width}" + (f"/{module.stride[0]}" if module.stride[0] > 1 else "")
    return "norm" if isinstance(module, NORMS) else type(module).__name__.lower()


def _macs(module: nn.Module, output: Tensor) -> int:
    """Every output number costs one multiply-accumulate a weight that leads to it (batch of one)."""
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return 0
    return output.numel() * module.weight[0].numel()


def _int8_bytes(module: nn.Module) -> int:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return module.weight.numel() + 8 * len(module.weight)
    return 0 if isinstance(module, NORMS) else 4 * _own(module)


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that operations make and nobody has freed yet; `peak` is the most it ever saw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = self._recent = 0
        # a view of a weight shares its storage, so weights are known from the start, at no cost
        self.known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._admit(tensor.untyped_storage())
        return result

    def _admit(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        self._recent = max(self._recent, self.live)
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def lap(self) -> int:
        """The peak since this was last asked."""
        recent, self._recent = self._recent, self.live
        return recent

    def _release(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.live -= size


def _infer(model: nn.Module, image_shape: tuple[int, int, int], memory: _LiveBytes) -> None:
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad(), memory:
        model(torch.empty(1, *image_shape, device=device))
    model.train(training)


# --- comparing and showing ---------------------------------------------------------------------------------


def check(budget: Budget, weights: Weights) -> None:
    """Raise UserError, with the layer table below its first lines, unless every limit is kept."""
    over = []
    for key in budget.__struct_fields__:
        limit, value = budget.limit(key), getattr(weights, key)
        if limit is not None and value >= limit:
            over.append(f"{key} {value:,} is not under the budget of {limit:,} (budget.{key})")
    if over:
        cure = "use fewer model.blocks or narrower model.channels, or raise the budget"
        raise UserError("\n".join([*over[:-1], f"{over[-1]}: {cure}", "", _as_text(table(weights, narrow=True))]))


def grouped(weights: Weights) -> list[Row]:
    """Rows a person wants to read: one a residual block, a norm with the layer before it."""
    groups: dict[str, list[Row]] = {}
    for row in weights.rows:
        name = ".".join(row.name.split(".")[:2])
        if "." not in name and row.kind == "norm" and groups:
            name = next(reversed(groups))
        groups.setdefault(name, []).append(row)
    return [_join(name, rows) for name, rows in groups.items()]


def _join(name: str, rows: list[Row]) -> Row:
    kinds = ", ".join(row.kind for row in rows if row.kind != "norm")
    sums = {key: sum(getattr(row, key) for row in rows) for key in SUMMED}
    return replace(rows[-1], name=name, kind=kinds, activations=max(row.activations for row in rows), **sums)


def table(weights: Weights, narrow: bool = False) -> RichTable:
    """A terminal table: a row a block with its share of parameters and MACs and, unless `narrow` (80 letters), its
    bytes in each format and the memory alive while it runs; then the totals."""
    from rich import box
    from rich.table import Table as RichTable

    rows = grouped(weights)
    columns = {
        "layer": ["total", *(row.name for row in rows)],
        "does": ["", *(row.kind for row in rows)],
        "gives": ["", *("x".join(map(str, row.shape)) for row in rows)],
        "params": [f"{weights.params:,}", *(f"{row.params:,}" for row in rows)],
        "of params": ["", *_bars([row.params / weights.params for row in rows])],
        "MACs": [short(weights.macs), *(short(row.macs) for row in rows)],
        "of MACs": ["", *_bars([row.macs / weights.macs for row in rows])],
    }
    if not narrow:
        for title, key in SIZES.items():
            columns[title] = [short(getattr(part, key), "B") for part in (weights, *rows)]
    caption = "activations: the most that lives at once, float32, one image" if not narrow else None
    grid = RichTable(box=box.SIMPLE, show_edge=False, padding=0, show_footer=True, caption=caption)
    grid.caption_justify = "left"
    for title, (total, *_) in columns.items():
        right = title in ("params", "MACs", *SIZES)
        grid.add_column(title, total, justify="right" if right else "left", no_wrap=True)
    for cells in zip(*(cells[1:] for cells in columns.values()), strict=True):
        grid.add_row(*cells)
    return grid


def short(number: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: `4.98 M`, `1.18 G`, `701 kB`."""
    rounded = float(f"{number:.3g}")
    power = min(int(math.log10(max(rounded, 1)) // 3), 3)
    digits = 2 - int(math.log10(rounded / 1000**power)) if power else 0
    return f"{rounded / 1000**power:.{digits}f} {' kMG'[power].strip()}{unit}".strip()


def _bars(shares: list[float], width: int = 5) -> list[str]:
    """Percentages, each with a bar as long as `width` letters for the largest."""
    eighths = [round(share / max(shares) * width * 8) for share in shares]
    bars = ["█" * (n // 8) + (" ▏▎▍▌▋▊▉"[n % 8] if n % 8 else "") for n in eighths]
    return [f"{share:5.1%} {bar:{width}}" for share, bar in zip(shares, bars, strict=True)]


def _as_text(grid: RichTable) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(grid)
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
