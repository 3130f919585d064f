"""LiteRT files (.tflite), converted in another interpreter, because litert-torch brings other versions of much."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from weightclass.data.images import Fit
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.runtimes import litert
from weightclass.runtimes.runner import packed

VARIABLE = "WEIGHTCLASS_LITERT"
PATIENCE = 3600  # seconds; 5 million parameters take it 10


class ChannelsLast(nn.Module):
    """Takes one image, uint8 [1, H, W, C], as cameras give it and LiteRT's kernels want it; our runtime hides that."""

    def __init__(self, shipped: Shipped) -> None:
        super().__init__()
        # litert-torch 0.10 knows a weight by its contiguous copy's address, which the next copy may get too: where
        # weights are not contiguous, it silently takes one for another (its issues 1061 and 1238).
        self.shipped = copy.deepcopy(shipped).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name, norm in list(self.shipped.named_modules()):
            if isinstance(norm, GroupBatchNorm2d):  # not folded: as a convolution it is one int8 operator, else four
                conv = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features)
                ones, (mean, var) = torch.ones_like(conv.weight), map(norm.get_buffer, ("running_mean", "running_var"))
                conv.weight, conv.bias = fuse_conv_bn_weights(ones, None, mean, var, norm.eps, norm.weight, norm.bias)
                self.shipped.set_submodule(name, conv)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.shipped(pixels.permute(0, 3, 1, 2))


def lift(network: nn.Module) -> None:
    """Give each channel that is bias alone a weight of 1e-4 of it: in the scale of none, the bias overflows int32."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.bias is not None:
            rows, least = conv.weight.data.flatten(1), 1e-4 * conv.bias.data.abs()
            rows[:, 0] = torch.where(rows.abs().amax(1) < least, least, rows[:, 0])


def write(
    shipped: Shipped,
    path: Path,
    header: dict[str, str],
    fit: Fit,  # not used: the file takes one size
    calibration: Tensor | None = None,
    rung: Rung | None = None,
) -> None:
    """Write a .tflite file: float32, or int8 as `rung` says, with ranges from `calibration` (uint8 [n, C, H, W]).

    `rung.reduce_range` has no use: XNNPACK adds in 32 bits. Raises UserError: there is no converter, or it fails.
    """
    python, network = converter(), ChannelsLast(shipped)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if rung is not None:
            assert calibration is not None
            lift(network)
            images, floats = calibration.permute(0, 2, 3, 1).contiguous().numpy(), [shipped.head, *rung.float_layers]
            granularity = "CHANNELWISE" if rung.per_channel else "TENSORWISE"
            np.savez(folder / "int8.npz", images=images, floats=floats, granularity=granularity)
        example = torch.zeros(1, *shipped.image_shape[1:], shipped.image_shape[0], dtype=torch.uint8)
        torch.export.save(torch.export.export(network, (example,)), folder / "network.pt2")
        (folder / "header").write_bytes(litert.MARK + bytes(32) + packed(header))
        _work(python, folder)
        atomic_write(path, litert.sealed((folder / "model.tflite").read_bytes()))


def converter() -> str:
    """The Python that has litert-torch. Raises UserError that says how to make one."""
    if named := os.environ.get(VARIABLE):
        if found := shutil.which(named):
            return found
        raise UserError(f"{VARIABLE}={named}: no such program; name the python of an environment with litert-torch")
    if importlib.util.find_spec("litert_torch"):
        return sys.executable
    pip = f"litert/bin/pip install litert-torch torch=={torch.__version__.split('+')[0]}"
    told = f"`python -m venv litert && {pip}` and `export {VARIABLE}=litert/bin/python`"
    raise UserError(f"writing .tflite files needs litert-torch, in an environment of its own: {told}")


def _work(python: str, folder: Path) -> None:
    # -I: else the worker's folder comes first in the path, and our onnx.py there would stand for onnx
    command = [python, "-I", str(Path(__file__).with_name("litert_worker.py")), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python}: converting to LiteRT failed: {error}") from None
    if done.returncode or not (folder / "model.tflite").exists():
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "Error" in line] or lines or [f"it ended with code {done.returncode}"]
        raise UserError(f"{python}: converting to LiteRT failed: {told[-1]}")
