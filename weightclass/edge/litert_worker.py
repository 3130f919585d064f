"""Run by path in an interpreter that has litert-torch and nothing of ours: FOLDER/network.pt2 to FOLDER/model.tflite.

FOLDER/header becomes its metadata. It is int8 where FOLDER/int8.npz says how.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, cast


def main(folder: Path) -> None:
    import litert_torch  # type: ignore[import-not-found]
    import numpy as np
    import torch
    from ai_edge_litert.tools import flatbuffer_utils

    flat, program = cast(Any, flatbuffer_utils), cast(Any, torch.export.load(folder / "network.pt2"))
    content = litert_torch.convert(program.module(), program.example_inputs[0]).model_content()
    model = flat.read_model_from_bytearray(bytearray(content))
    names = named(model, {key: value.numpy(force=True) for key, value in program.state_dict.items()})
    if (folder / "int8.npz").exists():
        content = int8(flat.convert_object_to_bytearray(model), names, np.load(folder / "int8.npz"))
        model = flat.read_model_from_bytearray(bytearray(content))  # whose weights then stand where old readers look
    model.buffers.append(flat.BufferT(data=np.fromfile(folder / "header", np.uint8)))
    model.metadata.append(flat.schema_fb.MetadataT(name=b"weightclass", buffer=len(model.buffers) - 1))
    flat.write_model(model, folder / "model.tflite")


def named(model: Any, state: dict[str, Any]) -> list[str]:
    """Name each operator after the layer whose weight it uses (litert-torch names two alike), else after its place."""
    layers: dict[bytes, list[str]] = {}
    for key, weight in state.items():
        if key.endswith(".weight") and weight.ndim > 1:
            weight = weight.reshape((*weight.shape, 1, 1)[:4])
            for layout in {weight.transpose(0, 2, 3, 1).tobytes(), weight.transpose(1, 2, 3, 0).tobytes()}:  # depthwise
                layers.setdefault(layout, []).append(key.removeprefix("shipped.").removesuffix(".weight"))
    graph, names = model.subgraphs[0], []
    for place, operator in enumerate(graph.operators):
        used = model.buffers[graph.tensors[operator.inputs[1]].buffer].data if len(operator.inputs) > 1 else None
        known = layers.get(b"" if used is None else bytes(used))
        names.append(known.pop(0) if known else str(place))
        graph.tensors[operator.outputs[0]].name = names[-1].encode()
    return names


def int8(content: Any, names: list[str], rung: Any) -> Any:
    """The file with int8 weights and activations, but for what stands before the first layer and `rung["floats"]`."""
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager  # type: ignore
    from ai_edge_quantizer.utils.qsv_utils import min_max_update  # type: ignore (the default, a moving average, clips)

    if missing := set(rung["floats"].tolist()) - set(names):
        raise ValueError(f"not in the converted graph, and so not to be left in float: {', '.join(sorted(missing))}")
    first = next(place for place, name in enumerate(names) if name != str(place))
    floats = "|".join(map(re.escape, [*names[:first], *rung["floats"].tolist()]))
    made = quantizer.Quantizer(content)
    made.add_static_config(".*", "*", 8, 8, qtyping.QuantGranularity[str(rung["granularity"])])
    made.update_quantization_recipe(f"^({floats});?$", "*", algorithm_key="no_quantize")
    # Rounding the pool was half of the whole error: mean logit differences 0.031 with it, 0.016 without
    for pool in (qtyping.TFLOperationName.AVERAGE_POOL_2D, qtyping.TFLOperationName.MEAN):
        made.update_quantization_recipe(".*", pool, algorithm_key="no_quantize")
    fast = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
    seen = calibrator.Calibrator(content, mode=fast, qsv_update_func=min_max_update)
    seen.calibrate({"serving_default": [{"args_0": i[None]} for i in rung["images"]]}, recipe_manager.RecipeManager())
    for ends in seen.get_model_qsvs().values():  # XNNPACK refuses the scale of an output that is always 0
        ends["max"] = ends["max"].clip(ends["min"] + 0.01)
    return made.quantize(seen.get_model_qsvs()).quantized_model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
