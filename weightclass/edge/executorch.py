"""ExecuTorch files for CPUs: the exported graph in float32, or int8 by pt2e, handed whole to XNNPACK."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch.export import Dim, export

from weightclass.data.images import Fit
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.files import atomic_write
from weightclass.runtimes.executorch import sealed
from weightclass.runtimes.runner import needs


def write(
    shipped: Shipped,
    path: Path,
    header: dict[str, str],
    fit: Fit,
    calibration: Tensor | None = None,
    rung: Rung | None = None,
) -> None:
    """Write `path` (.pte), which takes one image of the network's own size (no `fit`); int8 ranges as `calibration`."""
    plain: Shipped = copy.deepcopy(shipped).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    one, two = (torch.zeros(n, *shipped.image_shape, dtype=torch.uint8) for n in (1, 2))
    with needs("executorch", "writing .pte files"), _quiet(), torch.no_grad():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        graph = _suited(export(plain, (two,), dynamic_shapes=({0: Dim.DYNAMIC},)).module())
        if rung and calibration is not None:
            graph = _quantised(graph, {shipped.head, *rung.float_layers}, rung, calibration)
        edge = to_edge_transform_and_lower(export(graph, (one,)), partitioner=[XnnpackPartitioner()])
        atomic_write(path, sealed(edge.to_executorch().buffer, header))


def _suited(graph: fx.GraphModule) -> fx.GraphModule:
    """The same numbers in XNNPACK's words: means keep their axes, pools that come out even do not round up."""
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.mean.dim and len(node.args) == 2:
            node.args = (*node.args, True)
            node.append(flat := graph.graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1)))
            node.replace_all_uses_with(flat, lambda user, flat=flat: user is not flat)
        elif node.target is torch.ops.aten.avg_pool2d.default:  # its fifth argument: round up; those that do are 2x2
            node.args = node.args[: 4 + any(side % 2 for side in node.all_input_nodes[0].meta["val"].shape[2:])]
    graph.recompile()
    return graph


def _quantised(graph: fx.GraphModule, floats: set[str], rung: Rung, calibration: Tensor) -> fx.GraphModule:
    """`graph` in int8 where XNNPACK has it, but for the normalisation and the layers `floats`."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    def wanted(node: fx.Node) -> bool:
        *_, (module, _) = (node.meta.get("nn_module_stack") or {"": ("network", None)}).values()
        return module.startswith("network") and module not in floats  # a parameter has no stack of modules

    limit = 63 if rung.reduce_range else 127
    config = xnnpack.get_symmetric_quantization_config(rung.per_channel, weight_qmin=-limit, weight_qmax=limit)
    quantizer = xnnpack.XNNPACKQuantizer().set_global(config).set_filter_function(wanted)
    relus = ("aten.relu", "aten.hardtanh")  # theirs knows no relu6, before which a range is many times too wide
    with patch(f"{xnnpack.__name__}_utils.is_relu_node", lambda node: str(node.target).startswith(relus)):
        graph = prepare_pt2e(graph, quantizer)
    for images in calibration.split(64):
        graph(images)
    return convert_pt2e(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what their libraries tell developers; a handler on the root keeps logging.basicConfig from adding one."""
    logging.root.addHandler(handler := logging.NullHandler())
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.removeHandler(handler)
