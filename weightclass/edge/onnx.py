"""ONNX: one file for every runtime. It takes raw uint8 pixels of any size, and fits and normalises them itself.

float32; fp16, whose weights every runtime makes float32 again while loading; static int8 in QDQ format.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weightclass.data.fit import Fit
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.files import atomic_write
from weightclass.runtimes.runner import needs

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 20  # GELU is one operator from here on; onnxruntime 1.19 has all of it
QUANTISED = ["Conv", "Add", "Relu", "Clip", "Sigmoid"]  # the linear layer is none of them; pools go along with these
SMALL, LARGEST = 256, 65504  # an fp16 file's tensors of fewer values stay float32; float16's largest value
BATCH = 64  # calibration images at once


def write(
    shipped: Shipped,
    path: Path,
    header: dict[str, str],
    fit: Fit,
    calibration: Tensor | None = None,
    rung: Rung | None = None,
) -> None:
    """float32, or static int8 as `rung` says, calibrated on uint8 [n, C, H, W]; `fit` is how other sizes are resized.

    Activations are unsigned, weights signed: what x86 multiplies fastest (s8s8 was slower than float32).
    """
    model = _exported(shipped)
    if rung is not None:
        assert calibration is not None
        model = _quantised(model, calibration, rung)
    _save(model, path, header, front(shipped.image_shape, fit))


def write_half(shipped: Shipped, path: Path, header: dict[str, str], fit: Fit) -> None:
    """float16 weights with a Cast to float32 behind each, which onnxruntime folds as it loads: float32's speed."""
    model, first = _exported(shipped), front(shipped.image_shape, fit)
    from onnx import TensorProto, helper, numpy_helper

    for tensor in model.graph.initializer:
        values, name = numpy_helper.to_array(tensor), f"{tensor.name}.half"
        if values.dtype == np.float32 and values.size >= SMALL:
            first.graph.node.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(numpy_helper.from_array(values.clip(-LARGEST, LARGEST).astype(np.float16), name))
    _save(model, path, header, first)


def _exported(shipped: Shipped) -> ModelProto:
    """The network for uint8 "fitted" [n, C, H, W] in its own size. Weights are named as in `shipped`."""
    graph = _graph(shipped)
    import onnx

    return onnx.ModelProto.FromString(graph)


@lru_cache(maxsize=1)  # all files of an export begin with it
def _graph(shipped: Shipped) -> bytes:
    with needs("onnx", "exporting to ONNX"):
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    images, any_number = torch.zeros(2, *shipped.image_shape, dtype=torch.uint8), {0: torch.export.Dim("n")}
    settings: dict[str, Any] = {"opset_version": OPSET, "input_names": ["fitted"], "output_names": ["logits"]}
    with _quiet():
        program = torch.onnx.export(
            shipped, (images,), dynamo=True, verbose=False, dynamic_shapes=(any_number,), **settings
        )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with the paths of this machine
    return program.model_proto.SerializeToString()


def _quantised(model: ModelProto, calibration: Tensor, rung: Rung) -> ModelProto:
    """Layers between pairs of QuantizeLinear and DequantizeLinear, which onnxruntime fuses to one chain of int8."""
    weights = {f"{layer}.weight" for layer in rung.float_layers}
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [*model.graph.node]
    in_float = [node for node in nodes if weights & {*node.input}]
    shifts = [node for node in nodes if node.op_type == "Add" and constants & {*node.input}]  # the normalisation's
    batches = ({"fitted": batch.numpy()} for batch in calibration.split(BATCH))
    reader: Any = SimpleNamespace(get_next=lambda: next(batches, None))
    with needs("onnx", "quantising ONNX files"), tempfile.TemporaryDirectory() as folder, _quiet():
        import onnx
        from onnxruntime.quantization import QuantType, quantize_static

        for node in in_float:  # between two that are int8, onnxruntime makes it int8 too; not behind a Max, even of one
            apart = onnx.helper.make_node("Max", [node.input[0]], [f"{node.name}.input"])
            model.graph.node.insert([*model.graph.node].index(node), apart)
            node.input[0] = apart.output[0]
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        kinds: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        kinds |= {"per_channel": rung.per_channel, "reduce_range": rung.reduce_range}
        kinds |= {"nodes_to_exclude": [node.name for node in in_float + shifts], "op_types_to_quantize": QUANTISED}
        quantize_static(source, target, reader, **kinds)
        return onnx.load(target)


def _save(model: ModelProto, path: Path, header: dict[str, str], first: ModelProto) -> None:
    """Put `first` in front of the model and the header inside."""
    from onnx import helper

    graph, nodes = model.graph, [*first.graph.node, *model.graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(first.graph.initializer)
    graph.input[0].CopyFrom(first.graph.input[0])
    helper.set_model_props(model, header)
    atomic_write(path, model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's and the quantiser's advice, given as warnings, to loggers and to the root logger."""
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # logging.warning() adds one


# --- fitting -----------------------------------------------------------------------------------------------

_FRONT = """
<ir_version: 9, opset_import: ["" : {opset}]>
front (uint8[n, {c}, H, W] pixels) => (uint8[n, {c}, {h}, {w}] fitted) <int64[2] size = {{{h}, {w}}}> {{
  sides = Shape <start = 2> (pixels)
  equal = Equal (sides, size)
  fits = ReduceMin <keepdims = 0> (equal)
  fitted = If (fits) <
    then_branch = as_it_is () => (uint8[n, {c}, {h}, {w}] kept) {{ kept = Identity (pixels) }},
    else_branch = resized () => (uint8[n, {c}, {h}, {w}] made) {{ {fit} }}
  >
}}
"""
# What lies beyond the border has no weight (exclude_outside) and the others sum to 1, as in torch: no need to clip.
_RESIZE = """
  levels = Cast <to = 1> ({0})
  smooth = Resize <mode = "linear", antialias = 1, exclude_outside = 1, axes = [2, 3]> (levels, , , {1})
  whole = Round (smooth)
  {2} = Cast <to = 2> (whole)
"""
# box = max(1, min({0}, {1} * {2} / {3})), rounded half up, in the middle of {0} or {0} in its middle; [h, w] or [H, W]
_BOX = """
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  swap = Constant <value_ints = [1, 0]> ()
  axes = Constant <value_ints = [2, 3]> ()
  turned_sides = Gather (sides, swap)
  turned_size = Gather (size, swap)
  product = Mul ({1}, {2})
  twice = Mul (product, two)
  raised = Add (twice, {3})
  divisor = Mul ({3}, two)
  rounded = Div (raised, divisor)
  bounded = Min (rounded, {0})
  box = Max (bounded, one)
  rest = Sub ({0}, box)
  begin = Div (rest, two)
"""
_CUT = """
  end = Add (begin, box)
  cut = Slice (pixels, begin, end, axes)
"""
_PAD = """
  end = Sub (rest, begin)
  margins = Concat <axis = 0> (begin, end)
  made = Pad (inner, margins, , axes)
"""
_FITS: dict[Fit, str] = {
    "crop": _BOX.format("sides", "turned_sides", "size", "turned_size") + _CUT + _RESIZE.format("cut", "size", "made"),
    "pad": _BOX.format("size", "sides", "turned_size", "turned_sides")
    + _RESIZE.format("pixels", "box", "inner")
    + _PAD,
    "squash": _RESIZE.format("pixels", "size", "made"),
}


def front(image_shape: tuple[int, int, int], fit: Fit) -> ModelProto:
    """uint8 "pixels" [n, C, H, W] of any H and W to "fitted" [n, C, h, w], as data/fit.py does it."""
    from onnx import parser

    c, h, w = image_shape
    return parser.parse_model(_FRONT.format(opset=OPSET, c=c, h=h, w=w, fit=_FITS[fit]))
