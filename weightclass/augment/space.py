"""The engine that gives every image of a batch its own operation at its own strength.

A `Space` lists operations at all their strengths, one a row. What hangs on the strength alone (a table of 256 levels, a
fixed-point matrix) is computed once; then a batch runs seven kernels, whatever its images drew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightclass.augment import colour, warps
from weightclass.augment.ops import each_its_own

Strengths = dict[str, tuple[list[float], bool]]
"""Operation to its magnitudes and whether they have a random sign; the operations without any have one, 0."""

# What an operation needs: nothing, a table that hangs on its strength alone, a kernel of its own, a warp.
KINDS = {"Identity": 0, "Brightness": 1, "Posterize": 1, "Solarize": 1, "Invert": 1, "Contrast": 2, "AutoContrast": 3}
KINDS |= {"Equalize": 4, "Color": 5, "Sharpness": 6}
KINDS |= dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), 7)


class Space:
    """Operations at their strengths, ready for images of one size; `index` int64 [operations, strengths, 2 signs]
    gives the row of each (row 0 is the identity)."""

    def __init__(
        self, strengths: Strengths, height: int, width: int, device: torch.device, interpolation: str = "nearest"
    ) -> None:
        rows = [("Identity", 0.0)]
        count = max(len(magnitudes) for magnitudes, _ in strengths.values())
        index = torch.zeros(len(strengths), count, 2, dtype=torch.int64)
        for operation, (name, (magnitudes, signed)) in enumerate(strengths.items()):
            for bin_ in range(count):
                magnitude = magnitudes[bin_ % len(magnitudes)]
                for sign, value in enumerate((-magnitude if signed else magnitude, magnitude)):
                    index[operation, bin_, sign] = len(rows)
                    rows.append((name, value))
        names, values = [name for name, _ in rows], [value for _, value in rows]
        self.names, self._warp = list(strengths), warps.affine if interpolation == "nearest" else warps.project
        self.index = index.to(device)
        self.kind = torch.tensor([KINDS[name] for name in names]).to(device)
        self.factor = torch.tensor([1.0 + value for value in values]).to(device)
        self.tables = torch.cat([_table(name, value) for name, value in rows]).to(device)
        matrices = torch.cat([_matrix(name, value, height, width) for name, value in rows])
        self.warps = (warps.fixed(matrices) if interpolation == "nearest" else warps.projective(matrices)).to(device)

    def apply(self, images: Tensor, rows: Tensor) -> Tensor:
        """Each of `images`, uint8 [n, C, H, W], changed by the operation of its row (int64 [n])."""
        operations = (
            None,
            lambda images, rows: colour.look_up(images, self.tables.index_select(0, rows)),
            lambda images, rows: colour.contrast(images, self.factor.index_select(0, rows)),
            lambda images, _: colour.autocontrast(images),
            lambda images, _: colour.equalize(images),
            lambda images, rows: colour.saturation(images, self.factor.index_select(0, rows)),
            lambda images, rows: colour.sharpness(images, self.factor.index_select(0, rows)),
            lambda images, rows: self._warp(images, self.warps.index_select(0, rows)),
        )
        return each_its_own(self.kind.index_select(0, rows), operations, images, rows)


def _table(name: str, magnitude: float) -> Tensor:
    """uint8 [1, 1, 256]: what becomes of an image that has every level once."""
    levels, strength = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256), torch.tensor([magnitude])
    if name == "Brightness":
        levels = colour.brightness(levels, 1 + strength)
    elif name == "Posterize":
        levels = colour.posterize(levels, strength.long())
    elif name == "Solarize":
        levels = colour.solarize(levels, strength)
    elif name == "Invert":
        levels = colour.invert(levels)
    return levels.view(1, 1, 256)


def _matrix(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """float64 [1, 6]."""
    strength, still = torch.tensor([magnitude], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if name == "ShearX":
        return warps.shear_x(strength)
    if name == "ShearY":
        return warps.shear_y(strength)
    if name == "Rotate":
        return warps.rotation(strength, height, width)
    return warps.translation(strength if name == "TranslateX" else still, strength if name == "TranslateY" else still)
