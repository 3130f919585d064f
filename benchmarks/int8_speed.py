"""Our exported files against those that a user would write: torch.onnx.export, and onnxruntime's quantiser as it comes.

    python benchmarks/int8_speed.py [--seconds 20] [--recipes small-cpu paper-97] [--json FILE]

Prints bytes and milliseconds an image (batch 1, one thread, median, in rotation) and the ratio to the plain float32
file. The weights are untrained: speed does not depend on them. The plain files take normalised float32 images and leave
resizing and normalising to whoever runs them; ours take raw pixels and do both inside, in the time that is shown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import quantize_static
from torch import nn

from weightclass import recipe
from weightclass.edge import latency
from weightclass.edge.onnx import _quiet, write, write_half
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.model import networks
from weightclass.runtimes.runner import runner

SHAPE, MEAN, STD = (3, 32, 32), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


class Reader:
    """Calibration images one at a time, as the quantiser's own examples have it."""

    def __init__(self, name: str) -> None:
        self.rest = iter({name: image[None].numpy()} for image in normalised(images(128)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)


def plain_files(network: nn.Module, folder: Path) -> dict[str, Path]:
    """What two documentation pages come to: the exporter's file, and quantize_static of it with its own defaults."""
    files = {"plain float32": folder / "plain.onnx", "plain int8": folder / "plain-int8.onnx"}
    example, batch = normalised(images(2)), {0: torch.export.Dim("n")}
    with _quiet():
        program = torch.onnx.export(network, (example,), dynamo=True, verbose=False, dynamic_shapes=(batch,))
        assert program is not None
        onnx.save(program.model_proto, files["plain float32"])
        name = program.model_proto.graph.input[0].name
        reader: Any = Reader(name)
        quantize_static(files["plain float32"], files["plain int8"], reader)
    return files


def our_files(network: nn.Module, folder: Path) -> dict[str, Path]:
    shipped = Shipped(network, SHAPE, MEAN, STD)
    files = {f"our {kind}": folder / f"{kind}.onnx" for kind in ("float32", "fp16", "int8")}
    write(shipped, files["our float32"], {}, "crop")
    write_half(shipped, files["our fp16"], {}, "crop")
    write(shipped, files["our int8"], {}, "crop", images(128), Rung())
    return files


def measured(name: str, seconds: float) -> dict[str, dict[str, float]]:
    """Bytes and the median milliseconds of each file of a recipe's network."""
    network = networks.build(recipe.load(name).recipe.model, SHAPE, 10, seed=0).eval()
    with tempfile.TemporaryDirectory() as place:
        files = plain_files(network, Path(place)) | our_files(network, Path(place))
        opened = {kind: runner(path, threads=1) for kind, path in files.items()}
        pixels, prepared = images(64).numpy(), normalised(images(1)).numpy()  # the plain ones' normalising is not timed
        answers = {kind: each if each.raw else lambda _, each=each: each(prepared) for kind, each in opened.items()}
        times = latency.measure(answers, pixels, seconds)
        return {kind: {"bytes": path.stat().st_size, "ms": times[kind].p50} for kind, path in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--recipes", nargs="+", default=["small-cpu", "paper-97"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"{latency.cpu()}; onnxruntime {onnxruntime.__version__}, one thread, batch 1")
    found = {}
    for name in asked.recipes:
        found[name] = measured(name, asked.seconds)
        base = found[name]["plain float32"]
        print(f"\n{name:<16}{'bytes':>12}{'':>8}{'ms':>9}")
        for kind, each in found[name].items():
            size, time = each["bytes"] / base["bytes"], each["ms"] / base["ms"]
            print(f"{kind:<16}{each['bytes']:>12,}{size:>7.2f}x{each['ms']:>9.3f}{time:>7.2f}x")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
