"""What a network weighs, known before it is trained: parameters, MACs, bytes and peak activations against a budget.

Everything is counted on the meta device, in milliseconds and without memory. MACs are those of convolutions and
linear layers (half of `torch.utils.flop_counter`'s FLOPs).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightclass.config import Table, parse_quantity
from weightclass.errors import UserError
from weightclass.runlog import short

if TYPE_CHECKING:
    from rich.table import Table as RichTable

SUMMED = ("params", "macs", "bytes_fp32", "bytes_fp16", "bytes_int8")
SIZES = {"fp32": "bytes_fp32", "fp16": "bytes_fp16", "int8": "bytes_int8", "activations": "activations"}


class Budget(Table, kw_only=True):
    """The recipe's [budget] table: limits of `Figures`, such as "5M", "1.2G" or "512KiB"; "" sets none.

    A network must stay *under* every limit: params = "5M" admits at most 4,999,999.
    """

    params: int | str = ""
    macs: int | str = ""
    bytes_fp32: int | str = ""
    bytes_fp16: int | str = ""
    bytes_int8: int | str = ""
    activations: int | str = ""

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


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a layer, or all of a network, weighs; under the names of the `Budget` keys."""

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
    being folded into weight and bias; 4 bytes for each parameter of any other layer, norms before convolutions too."""
    activations: int
    """Peak bytes of live tensors, the image included and parameters not, in a float32 inference of one image as
    eager PyTorch runs it; a layer's, since the layer before it ended. A runtime that folds the norms needs less."""


@dataclass(frozen=True, kw_only=True)
class Row(Figures):
    """One layer, or a group of them; `shape` is the output's without the batch axis."""

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Weights(Figures):
    """A network on the scales: its totals, and every layer that has parameters, in the order they run."""

    rows: tuple[Row, ...]


# --- weighing ----------------------------------------------------------------------------------------------


def weigh(model: nn.Module, image_shape: tuple[int, int, int]) -> Weights:
    """Weigh `model` (meant to be on the meta device) on one image of `image_shape` (C, H, W)."""
    rows: list[Row] = []
    memory = _LiveBytes(model)

    def record(name: str, module: nn.Module, _: Any, output: Tensor) -> None:
        numbers = _numbers(module)
        row = Row(
            name=name,
            kind=_kind(module),
            shape=tuple(output.shape[1:]),
            params=_own(module),
            macs=_macs(module, output),
            bytes_fp32=4 * numbers,
            bytes_fp16=2 * numbers,
            bytes_int8=_int8_bytes(module),
            activations=memory.lap(),
        )
        rows.append(row)

    layers = [(name, module) for name, module in model.named_modules() if _own(module)]
    hooks = [module.register_forward_hook(partial(record, name)) for name, module in layers]
    device, training = next(model.parameters()).device, model.training
    with torch.no_grad(), memory:
        model.eval()(torch.empty(1, *image_shape, device=device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return Weights(rows=tuple(rows), **_totals(rows))


def _totals(rows: Sequence[Row]) -> dict[str, int]:
    sums = {key: sum(getattr(row, key) for row in rows) for key in SUMMED}
    return sums | {"activations": max(row.activations for row in rows)}


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
        depthwise = "dw" if module.groups == module.in_channels > 1 else ""
        return f"{depthwise}{height}x{width}" + (f"/{module.stride[0]}" if module.stride[0] > 1 else "")
    return "norm" if isinstance(module, nn.BatchNorm2d) else type(module).__name__.lower()


def _macs(module: nn.Module, output: Tensor) -> int:
    """Every output number costs one multiply-accumulate a weight that leads to it (batch of one)."""
    return output.numel() * module.weight[0].numel() if isinstance(module, (nn.Conv2d, nn.Linear)) else 0


def _int8_bytes(module: nn.Module) -> int:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return module.weight.numel() + 8 * len(module.weight)
    return 0 if isinstance(module, nn.BatchNorm2d) and getattr(module, "folds", True) else 4 * _own(module)


class _LiveBytes(TorchDispatchMode):
    """Sums the storages that operations make and nobody has freed yet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
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
        weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())

    def lap(self) -> int:
        """The peak since this was last asked."""
        peak, self.peak = self.peak, self.live
        return peak

    def _release(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.live -= size


# --- comparing and showing ---------------------------------------------------------------------------------


def check(budget: Budget, weights: Weights, cure: str) -> None:
    """Raise UserError, with the layer table below its first lines, unless every limit is kept; `cure` says how to."""
    over = []
    for key in budget.__struct_fields__:
        limit, value = budget.limit(key), getattr(weights, key)
        if limit is not None and value >= limit:
            over.append(f"{key} {value:,} is not under the budget of {limit:,} (budget.{key})")
    if over:
        over[-1] += f": {cure}, or raise the budget"
        raise UserError("\n".join([*over, "", _as_text(table(weights, narrow=True))]))


def grouped(weights: Weights) -> list[Row]:
    """Rows a person wants to read: one a residual block; a norm, or squeeze and excitation, with what it follows."""
    groups: dict[str, list[Row]] = {}
    for row in weights.rows:
        name = ".".join(row.name.split(".")[:2])
        if groups and (name.startswith("se.") or ("." not in name and row.kind == "norm")):
            name = next(reversed(groups))
        groups.setdefault(name, []).append(row)
    return [_join(name, rows) for name, rows in groups.items()]


def _join(name: str, rows: list[Row]) -> Row:
    main = [row for row in rows if "se" not in row.name.split(".")]
    kinds = [row.kind for row in main if row.kind != "norm"] + ["se"] * (len(main) < len(rows))
    return replace(main[-1], name=name, kind=", ".join(kinds), **_totals(rows))


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
    style: dict[str, Any] = {"box": box.SIMPLE, "show_edge": False, "padding": 0, "caption_justify": "left"}
    grid = RichTable(show_footer=True, caption=caption, **style)
    for title, (total, *_) in columns.items():
        right = title in ("params", "MACs", *SIZES)
        grid.add_column(title, total, justify="right" if right else "left", no_wrap=True)
    for cells in zip(*(cells[1:] for cells in columns.values()), strict=True):
        grid.add_row(*cells)
    return grid


def _bars(shares: list[float], width: int = 5) -> list[str]:
    """Percentages, each with a bar as long as `width` letters for the largest."""
    eighths = [round(share / max(shares) * width * 8) for share in shares]
    bars = ["█" * (n // 8) + (" ▏▎▍▌▋▊▉"[n % 8] if n % 8 else "") for n in eighths]
    return [f"{share:5.1%} {bar:{width}}" for share, bar in zip(shares, bars, strict=True)]


def _as_text(grid: RichTable) -> str:
    from rich.console import Console

    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip()
