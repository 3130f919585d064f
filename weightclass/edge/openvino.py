"""OpenVINO files: the traced network as a graph of float32 numbers, or of int8 by NNCF's static quantisation."""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

from weightclass.data.images import Fit
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.files import atomic_write
from weightclass.runtimes.openvino import written
from weightclass.runtimes.runner import needs


def write(
    shipped: Shipped,
    path: Path,
    header: dict[str, str],
    fit: Fit,
    calibration: Tensor | None = None,
    rung: Rung | None = None,
) -> None:
    """Write `path` (.xml) and the weights beside it (.bin); int8 where there is a `rung`, by `calibration` images.

    "pixels" uint8 [n, C, H, W], any n but the network's own C, H, W, so that `fit` is the runtime's business, to
    "logits" float32 [n, classes]. After a kill between the two files the old .xml refuses the new .bin.
    """
    model = _converted(shipped)
    if rung:
        assert calibration is not None
        # "network": what belongs to no layer, thus the last pool; with it in int8 logits were 1.5 times as far off.
        model = _int8(model, (shipped.head, "network", *rung.float_layers), calibration, rung)
    graph, weights = _saved(model)
    atomic_write(path.with_suffix(".bin"), weights)
    atomic_write(path, written(graph, weights, header))


def _converted(shipped: Shipped) -> Any:
    """An openvino.Model whose operations are named after their layer: "__module.network.conv1/..."."""
    with needs("openvino", "writing .xml files"):
        import openvino
    example = torch.zeros(2, *shipped.image_shape, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates tracing, on which OpenVINO's converter stands
        model = openvino.convert_model(shipped, example_input=example, input=[-1, *shipped.image_shape])
    model.output(0).get_tensor().set_names({"logits"})
    return model


def _int8(model: Any, float_layers: tuple[str, ...], calibration: Tensor, rung: Rung) -> Any:
    with needs("openvino", "writing int8 .xml files"):
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters
    nncf.set_log_level(logging.ERROR)
    settings = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if rung.reduce_range else nncf.OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(per_channel=rung.per_channel),
        disable_bias_correction=True,  # its fast kind put logits 3.5 times as far off, its slow kind no nearer
    )
    ignored = nncf.IgnoredScope(patterns=[re.escape(f"__module.{name}/") + ".*" for name in float_layers])
    # A range is the mean of the batches' extremes; of batches of 1 to 512 images, these agreed best.
    images = nncf.Dataset([batch.numpy() for batch in calibration.split(32)])
    with redirect_stdout(None), warnings.catch_warnings():  # its progress bars
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model, images, target_device=nncf.TargetDevice.CPU, ignored_scope=ignored, advanced_parameters=settings
        )


def _saved(model: Any) -> tuple[bytes, bytes]:
    """Bytes of the graph, without indentation and OpenVINO's own rt_info, and of the weights."""
    import openvino

    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        openvino.save_model(model, file, compress_to_fp16=False)
        root, weights = ElementTree.parse(file).getroot(), file.with_suffix(".bin").read_bytes()
    root[:] = root.findall("layers") + root.findall("edges")
    ElementTree.indent(root, "")
    return ElementTree.tostring(root).removesuffix(b"</net>"), weights
