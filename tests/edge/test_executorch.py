"""ExecuTorch files say what the network says, in the numbers that were asked for, and XNNPACK computes all of it."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from tests.edge.test_shipped import KINDS, MEAN, SHAPE, STD, lived_in, pixels
from weightclass.edge.executorch import write
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.runtimes.executorch import Opened, _read

pytest.importorskip("executorch")

HEADER = {"image_shape": "[3, 8, 8]", "classes": "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"}
GREY = (1, 8, 8)
FLOAT, INT8 = "xnn_datatype_fp32", "xnn_datatype_qint8"


@pytest.fixture(scope="module")
def shipped() -> Shipped:
    return Shipped(lived_in(), SHAPE, MEAN, STD)


@pytest.fixture(scope="module")
def int8(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("int8") / "net-int8.pte", shipped, Rung())


def written(path: Path, shipped: Shipped, rung: Rung | None = None) -> Path:
    write(shipped, path, HEADER, "crop", pixels(70) if rung else None, rung)
    return path


class Program:
    """What a file computes: the operators left to ExecuTorch's own kernels, and the parts of XNNPACK's graph."""

    def __init__(self, path: Path) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        file = deserialize_pte_binary(_read(path)[0])
        plan = file.program.execution_plan[0]
        self.operators = [operator.name for operator in plan.operators]
        (delegate,) = plan.delegates
        graph = _graph(file.program.backend_delegate_data[delegate.processed.index].data)
        tensors = [entry["xvalue_union"] for entry in graph["xvalues"]]
        self.tensors = {tensor["id_out"]: tensor for tensor in (each.get("tensor_value", each) for each in tensors)}
        nodes = [(entry["xnode_union_type"], entry["xnode_union"]) for entry in graph["xnodes"]]
        self.adds = [node for kind, node in nodes if kind == "XNNAdd"]
        self.kinds = {kind for kind, _ in nodes}
        self.convolutions = [node for kind, node in nodes if kind in ("XNNConv2d", "XNNDepthwiseConv2d")]
        (self.head,) = (node for kind, node in nodes if kind == "XNNFullyConnected")
        self._constants, self._named = graph["constant_data"], file.named_data

    def types(self, node: dict[str, Any], *of: str) -> list[str]:
        return [self.tensors[node[f"{which}_id"]]["datatype"] for which in of]

    def weight(self, node: dict[str, Any]) -> np.ndarray:
        """Of an int8 layer, as stored."""
        key = self._constants[self.tensors[node["filter_id"]]["constant_buffer_idx"]]["named_key"]
        return np.frombuffer(self._named.buffers[self._named.pte_data[key].buffer_index], np.int8)


def _graph(data: bytes) -> dict[str, Any]:
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = serialize.XNNHeader.from_bytes(data[: serialize.XNNHeader.EXPECTED_LENGTH])
    with TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(serialize._get_schema_bytes())
        binary.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = binary.with_suffix(".json").read_text(encoding="utf-8")
    return json.loads(re.sub(r"\binf\b", "Infinity", text))


def check(settings: tuple[str, ...], path: Path) -> None:
    """Agreement to 1e-4 of the logits' spread, for any n; and all is XNNPACK's but the conversion of the pixels."""
    shipped = Shipped(lived_in(*settings).to(memory_format=torch.channels_last), SHAPE, MEAN, STD)
    opened = Opened(written(path, shipped), threads=1)
    spread = float(shipped(pixels()).std())
    for n in (3, 0, 1):
        said = opened(pixels(n).numpy())
        assert said.dtype == np.float32 and said.shape == (n, 10)
        np.testing.assert_allclose(said, shipped(pixels(n)), rtol=0, atol=1e-4 * spread)
    assert Program(path).operators == ["dim_order_ops::_to_dim_order_copy"]


@pytest.mark.slow
def test_the_file_says_what_the_network_says(tmp_path: Path) -> None:
    check((), tmp_path / "net.pte")


@pytest.mark.slow
@pytest.mark.parametrize("settings", KINDS[1:], ids=" ".join)
def test_others_too(settings: tuple[str, ...], tmp_path: Path) -> None:
    check(settings, tmp_path / "net.pte")


@pytest.mark.slow
def test_a_map_of_odd_sides_is_halved_upwards(tmp_path: Path) -> None:
    shape = (3, 10, 7)
    network = lived_in("model.downsample=avgpool", "model.pool=global", shape=shape)
    shipped = Shipped(network, shape, MEAN, STD)
    write(shipped, tmp_path / "net.pte", HEADER, "crop")
    said = Opened(tmp_path / "net.pte", 1)(pixels(3, shape).numpy())
    np.testing.assert_allclose(said, shipped(pixels(3, shape)), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_grey_images_in_float_and_int8(tmp_path: Path) -> None:
    shipped = Shipped(lived_in(shape=GREY), GREY, MEAN[:1], STD[:1])
    expected = shipped(pixels(20, GREY)).numpy()
    for rung, within in ((None, 1e-4), (Rung(), 0.05)):
        write(shipped, tmp_path / "net.pte", HEADER | {"image_shape": "[1, 8, 8]"}, "crop", pixels(20, GREY), rung)
        opened = Opened(tmp_path / "net.pte", 1)
        assert opened.image_shape == GREY
        assert np.abs(opened(pixels(20, GREY).numpy()) - expected).mean() < within * expected.std()


@pytest.mark.slow
def test_the_network_itself_stays_as_it_was(shipped: Shipped, int8: Path) -> None:
    anew = Shipped(lived_in(), SHAPE, MEAN, STD)
    assert all(torch.equal(tensor, anew.state_dict()[name]) for name, tensor in shipped.state_dict().items())


@pytest.mark.slow
def test_int8_is_close(shipped: Shipped, int8: Path) -> None:
    expected, said = shipped(pixels(70)).numpy(), Opened(int8, 1)(pixels(70).numpy())
    assert 1e-4 < np.abs(said - expected).mean() / expected.std() < 0.03


@pytest.mark.slow
def test_everything_but_the_head_is_int8(shipped: Shipped, int8: Path) -> None:
    program = Program(int8)
    assert program.operators == ["dim_order_ops::_to_dim_order_copy"]
    assert len(program.convolutions) == len(shipped.layers)
    for node in program.convolutions:
        assert program.types(node, "input1", "filter", "output") == [INT8, "xnn_datatype_qcint8", INT8]
        assert np.abs(program.weight(node).astype(int)).max() == 127
    normalisation, *sums = program.adds
    assert program.types(normalisation, "input1", "output") == [FLOAT, FLOAT]
    assert all(program.types(node, "input1", "input2", "output") == [INT8] * 3 for node in sums) and sums
    assert "XNNClamp" not in program.kinds, "a relu is part of the convolution or sum before it"
    assert program.types(program.head, "input1", "filter", "output") == [FLOAT] * 3


@pytest.mark.slow
def test_int8_is_small(tmp_path: Path) -> None:
    large = Shipped(lived_in("model.kernels=9"), SHAPE, MEAN, STD)
    whole, small = (written(tmp_path / "net.pte", large, rung).stat().st_size for rung in (None, Rung()))
    assert small < 0.3 * whole


@pytest.mark.slow
def test_a_scale_a_tensor_where_that_is_asked_for(shipped: Shipped, int8: Path, tmp_path: Path) -> None:
    program = Program(written(tmp_path / "net.pte", shipped, Rung(per_channel=False)))
    assert {program.types(node, "filter")[0] for node in program.convolutions} == {INT8}
    expected, said = shipped(pixels(70)).numpy(), Opened(tmp_path / "net.pte", 1)(pixels(70).numpy())
    by_channel = Opened(int8, 1)(pixels(70).numpy())
    assert np.abs(by_channel - expected).mean() < np.abs(said - expected).mean() < 0.1 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", ["network.layer1.0.conv2", "network.layer2.0.conv1"]
)  # with a relu behind: the second
def test_float_layers_stay_in_float_and_7_bits_are_7(layer: str, shipped: Shipped, tmp_path: Path) -> None:
    program = Program(written(tmp_path / "net.pte", shipped, Rung(float_layers=(layer,), reduce_range=True)))
    types = [program.types(node, "input1", "filter") for node in program.convolutions]
    assert [name for name, kinds in zip(shipped.layers, types, strict=True) if FLOAT in kinds] == [layer]
    assert types[shipped.layers.index(layer)] == [FLOAT, FLOAT]
    for node in program.convolutions:
        if program.types(node, "filter") != [FLOAT]:
            assert np.abs(program.weight(node).astype(int)).max() == 63


@pytest.mark.slow
def test_logging_is_left_as_it_was(int8: Path) -> None:
    assert logging.root.manager.disable == logging.NOTSET
    assert not any(type(handler) in (logging.NullHandler, logging.StreamHandler) for handler in logging.root.handlers)


def test_executorch_is_not_installed(shipped: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the first name imported: one met half way through theirs would leave packages without parents to later tests
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    with pytest.raises(UserError, match=r"pip install 'weightclass\[executorch\]'"):
        written(tmp_path / "net.pte", shipped)
    assert not list(tmp_path.iterdir())


QUIETLY = """
import sys
from pathlib import Path
from tests.edge.test_executorch import Opened, Rung, lived_in, pixels, written, Shipped, SHAPE, MEAN, STD
Opened(written(Path(sys.argv[1]), Shipped(lived_in(), SHAPE, MEAN, STD), Rung()), 1)(pixels(2).numpy())
"""


@pytest.mark.slow
def test_nothing_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", QUIETLY, str(tmp_path / "net.pte")]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, capture_output=True)
    assert (told.returncode, told.stdout, told.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_a_relu6_is_part_of_its_convolution(tmp_path: Path) -> None:
    """On its own, it would leave the convolution a range of which most is cut off."""
    shipped = Shipped(lived_in("model.name=mobilenetv2", "model.width=0.1"), SHAPE, MEAN, STD)
    program = Program(written(tmp_path / "net.pte", shipped, Rung()))
    assert "XNNClamp" not in program.kinds and "XNNDepthwiseConv2d" in program.kinds
    assert all(program.types(node, "output") == [INT8] for node in program.convolutions)
