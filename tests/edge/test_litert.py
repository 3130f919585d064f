"""What the converter is asked, what is said where it is missing or fails, and, where it is there, what it makes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from weightclass import recipe
from weightclass.edge import litert, litert_worker
from weightclass.edge.rungs import Rung
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.runtimes import litert as runtime

SHAPE = (3, 8, 8)
HEADER = {"format": "weightclass/1", "image_shape": json.dumps(SHAPE), "classes": json.dumps(list("abcdefghij"))}
KINDS = [
    (),
    ("model.preactivation=true", "model.se=blocks"),
    ("model.name=mobilenetv2", "model.width=0.1"),
]


def shipped(*settings: str) -> Shipped:
    """As loaded: channels last; its norms are those of no fresh network."""
    small = () if "model.name=mobilenetv2" in settings else ("model.blocks=1,2", "model.channels=8,16")
    network = networks.build(recipe.load("quickstart", *small, *settings).recipe.model, SHAPE, 10, seed=3)
    for place, norm in enumerate(module for module in network.modules() if isinstance(module, GroupBatchNorm2d)):
        lived_in(norm, place)
    return Shipped(network.to(memory_format=torch.channels_last), SHAPE, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def lived_in(norm: nn.BatchNorm2d, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for tensor, lo, hi in ((norm.weight, 0.5, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        assert tensor is not None
        tensor.data.uniform_(lo, hi, generator=draw)
    norm.get_buffer("running_var").uniform_(0.2, 3, generator=draw)


def pixels(n: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, (n, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- before the converter ----------------------------------------------------------------------------------


@torch.no_grad()
def test_channels_last_says_the_same_with_contiguous_weights_and_leaves_the_shipped_one_alone() -> None:
    for settings in KINDS:
        ours = shipped(*settings)
        before = {name: tensor.stride() for name, tensor in ours.state_dict().items()}
        assert settings == KINDS[2] or not all(tensor.is_contiguous() for tensor in ours.state_dict().values())
        other = litert.ChannelsLast(ours).eval()
        torch.testing.assert_close(other(pixels(4).permute(0, 2, 3, 1)), ours(pixels(4)), rtol=1e-4, atol=1e-3)
        assert all(tensor.is_contiguous() for tensor in other.state_dict().values())
        assert not any(isinstance(module, GroupBatchNorm2d) for module in other.modules())
        assert {name: tensor.stride() for name, tensor in ours.state_dict().items()} == before


@torch.no_grad()
def test_lifted_channels_say_the_same_within_what_int8_can_tell() -> None:
    network = litert.ChannelsLast(with_a_channel_of_bias_alone(shipped())).eval()
    images = pixels(4).permute(0, 2, 3, 1)
    before, expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}, network(images)
    litert.lift(network)
    assert (network(images) - expected).abs().max() < 1e-2 * expected.std()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"shipped.network.layer1.0.conv1.weight"}
    weight = network.get_parameter("shipped.network.layer1.0.conv1.weight")
    assert weight[3].abs().amax() == pytest.approx(2.5e-4) and weight[3].count_nonzero() == 1
    assert torch.equal(weight[4:], before["shipped.network.layer1.0.conv1.weight"][4:])


def with_a_channel_of_bias_alone(ours: Shipped) -> Shipped:
    """As weight decay leaves channels that nobody needs."""
    conv = ours.get_submodule("network.layer1.0.conv1")
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    conv.weight.data[3], conv.bias.data[3] = 0, 2.5
    return ours


def graph(*weights: np.ndarray | None) -> Any:
    """A model of LiteRT's reader with one operator for each weight."""
    buffers = [SimpleNamespace(data=None)] + [
        SimpleNamespace(data=None if w is None else np.frombuffer(w.tobytes(), np.uint8)) for w in weights
    ]
    tensors = [SimpleNamespace(buffer=place, name=b"") for place in range(len(buffers))]
    outputs = [SimpleNamespace(buffer=0, name=b"") for _ in weights]
    operators = [
        SimpleNamespace(inputs=[0, place + 1], outputs=[len(tensors) + place]) for place in range(len(weights))
    ]
    return SimpleNamespace(buffers=buffers, subgraphs=[SimpleNamespace(tensors=tensors + outputs, operators=operators)])


def test_operators_are_named_after_their_weights() -> None:
    draw = np.random.default_rng(0)
    usual, narrow = draw.random((4, 3, 3, 3), np.float32), draw.random((6, 1, 3, 3), np.float32)
    linear, scale = draw.random((10, 4), np.float32), draw.random((1, 3, 1, 1), np.float32)
    state = {"shipped.scale": scale, "shipped.network.conv1.weight": usual, "shipped.network.deep.weight": narrow}
    state |= {"shipped.network.linear.weight": linear, "shipped.network.linear.bias": draw.random(10, np.float32)}
    state |= {"shipped.network.zero.0.weight": 0 * usual, "shipped.network.zero.1.weight": 0 * usual}
    usual_layout, narrow_layout = usual.transpose(0, 2, 3, 1), narrow.transpose(1, 2, 3, 0)
    model = graph(scale, usual_layout, None, narrow_layout, 0 * usual_layout, linear, 0 * usual_layout, 0 * usual)
    said = litert_worker.named(model, state)
    names = ["0", "conv1", "2", "deep", "zero.0", "linear", "zero.1", "7"]
    assert said == [name if name.isdigit() else f"network.{name}" for name in names]
    tensors = model.subgraphs[0].tensors
    assert [tensors[operator.outputs[0]].name.decode() for operator in model.subgraphs[0].operators] == said


# --- the other interpreter ---------------------------------------------------------------------------------


def test_without_a_converter_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(litert.VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        litert.write(shipped(), tmp_path / "a.tflite", HEADER, "stretch")
    said = str(caught.value)
    release = torch.__version__.split("+")[0]
    assert f"`python -m venv litert && litert/bin/pip install litert-torch torch=={release}`" in said
    assert "`export WEIGHTCLASS_LITERT=litert/bin/python`" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_running_interpreter_will_do_where_it_has_the_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(litert.VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "litert_torch" else None)
    assert litert.converter() == sys.executable


def test_a_named_interpreter_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(litert.VARIABLE, sys.executable)
    assert litert.converter() == sys.executable
    monkeypatch.setenv(litert.VARIABLE, "nowhere/python")
    with pytest.raises(
        UserError, match=r"^WEIGHTCLASS_LITERT=nowhere/python: no such program; name the python of [^\n]*$"
    ):
        litert.converter()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Names as interpreter a script that does what it is told to, with the folder it is given."""
    if os.name == "nt":
        pytest.skip("a script is no program on Windows")

    def made(*lines: str) -> Path:
        script = tmp_path / "python"
        head = (f"#!{sys.executable}", "import pathlib, shutil, sys, time", "folder = pathlib.Path(sys.argv[-1])")
        script.write_text("\n".join((*head, *lines)) + "\n", encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setenv(litert.VARIABLE, str(script))
        return script

    return made


def test_the_worker_is_given_program_header_and_rung(stand_in: Any, tmp_path: Path) -> None:
    stand_in(
        f"shutil.copytree(folder, {str(tmp_path / 'given')!r}, dirs_exist_ok=True)",
        f"pathlib.Path({str(tmp_path / 'argv')!r}).write_text(' '.join(sys.argv[1:-1]))",
        "header = (folder / 'header').read_bytes()",
        "told = b'1234TFL3' + len(header).to_bytes(4, 'little') + header + b'weights'",
        "(folder / 'model.tflite').write_bytes(told)",
    )
    ours, images, file = shipped(), pixels(5), tmp_path / "a.tflite"
    litert.write(ours, file, HEADER, "stretch", images, Rung(per_channel=False, float_layers=("network.conv1",)))
    assert (tmp_path / "argv").read_text() == f"-I {litert_worker.__file__}"
    given = np.load(tmp_path / "given" / "int8.npz")
    assert given["floats"].tolist() == ["network.linear", "network.conv1"] and given["granularity"] == "TENSORWISE"
    assert np.array_equal(given["images"], images.permute(0, 2, 3, 1).numpy())
    program = torch.export.load(tmp_path / "given" / "network.pt2")
    with torch.no_grad():
        said = program.module()(images[:1].permute(0, 2, 3, 1).contiguous())
        torch.testing.assert_close(said, ours(images[:1]), rtol=1e-4, atol=1e-4)
    content = file.read_bytes()
    assert runtime.sealed(content) == content and content.endswith(b"weights")
    runtime.stamp(file, HEADER | {"facts": "{}"})  # finds it
    assert len(file.read_bytes()) == len(content) and b'"facts": "{}"' in file.read_bytes()
    (tmp_path / "given" / "int8.npz").unlink()
    litert.write(ours, file, HEADER, "stretch")
    assert not (tmp_path / "given" / "int8.npz").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tflite", "argv", "given", "python"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("raise ValueError('too wide')", "ValueError: too wide"),
        ("sys.stderr.write('RuntimeError: no\\n  at the end, chatter\\n\\n'); sys.exit(1)", "RuntimeError: no"),
        ("sys.exit('out of words')", "out of words"),
        ("sys.exit(7)", "it ended with code 7"),
        ("", "it ended with code 0"),
    ],
)
def test_a_failing_converter_is_one_line(stand_in: Any, tmp_path: Path, line: str, told: str) -> None:
    script = stand_in(line)
    (tmp_path / "a.tflite").write_bytes(b"before")
    with pytest.raises(UserError) as caught:
        litert.write(shipped(), tmp_path / "a.tflite", HEADER, "stretch")
    assert str(caught.value) == f"{script}: converting to LiteRT failed: {told}"
    assert (tmp_path / "a.tflite").read_bytes() == b"before"


def test_patience_ends(stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("time.sleep(60)")
    monkeypatch.setattr(litert, "PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"converting to LiteRT failed: .*timed out after 0.2 seconds$"):
        litert.write(shipped(), tmp_path / "a.tflite", HEADER, "stretch")


def test_what_is_no_python_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Any) -> None:
    stand_in("").write_bytes(b"\x7fELF\0\0")
    with pytest.raises(UserError, match=r"python: converting to LiteRT failed: [^\n]*$"):
        litert.write(shipped(), tmp_path / "a.tflite", HEADER, "stretch")


# --- the converter -----------------------------------------------------------------------------------------

there = importlib.util.find_spec("ai_edge_litert") and (
    os.environ.get(litert.VARIABLE) or importlib.util.find_spec("litert_torch")
)
converts = pytest.mark.skipif(not there, reason="needs ai-edge-litert, and litert-torch named by WEIGHTCLASS_LITERT")


def weights(path: Path) -> tuple[dict[str, tuple[str, int]], Counter[str]]:
    """The type and the number of scales of each layer's weight; and how often there is each operator."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    said = lambda kinds, code: next(name for name, other in vars(kinds).items() if other == code)  # noqa: E731
    model: Any = flatbuffer_utils.read_model(str(path))
    tensors, found, operators = model.subgraphs[0].tensors, {}, Counter()
    for operator in model.subgraphs[0].operators:
        operators[said(schema.BuiltinOperator, model.operatorCodes[operator.opcodeIndex].builtinCode)] += 1
        name = tensors[operator.outputs[0]].name.decode()
        if name.startswith("network.") and len(operator.inputs) > 1:
            tensor = tensors[operator.inputs[1]]
            scales = tensor.quantization.scale if tensor.quantization else None
            found[name.split("_")[0]] = said(schema.TensorType, tensor.type), 0 if scales is None else len(scales)
    return found, operators


@converts
@pytest.mark.slow
@pytest.mark.parametrize("settings", KINDS, ids=" ".join)
def test_the_float_file_says_what_the_network_says(settings: tuple[str, ...], tmp_path: Path) -> None:
    ours, file = shipped(*settings), tmp_path / "a.tflite"
    litert.write(ours, file, HEADER, "stretch")
    said, expected = torch.from_numpy(runtime.Opened(file, 1)(pixels(32).numpy())), ours(pixels(32))
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    found, operators = weights(file)
    assert {ours.head, *ours.layers} <= set(found)
    assert {kind for kind, _ in found.values()} == {"FLOAT32"} and operators["TRANSPOSE"] <= 1


@converts
@pytest.mark.slow
@pytest.mark.parametrize("settings", KINDS, ids=" ".join)
def test_int8_files_do_as_the_rung_says(settings: tuple[str, ...], tmp_path: Path) -> None:
    ours, file = shipped(*settings), tmp_path / "a.tflite"
    kept = ours.layers[1]
    images, expected = pixels(64, seed=2), ours(pixels(64))
    for rung in (Rung(), Rung(per_channel=False, float_layers=(kept,))):
        litert.write(ours, file, HEADER, "stretch", images, rung)
        found, operators = weights(file)
        assert {name for name, (kind, _) in found.items() if kind == "FLOAT32"} == {ours.head, *rung.float_layers}
        wide = [scales for name, (kind, scales) in found.items() if kind == "INT8" and "fc1" not in name]
        assert all((scales > 1) == rung.per_channel for scales in wide) and len(wide) > 4
        opened = runtime.Opened(file, 1)
        said = torch.from_numpy(opened(pixels(64).numpy()))
        assert said.dtype == torch.float32 and opened.header == HEADER
        assert (said - expected).abs().mean() < (0.1 if rung.per_channel else 0.3) * expected.std()
        assert operators["QUANTIZE"] >= 1 + len(rung.float_layers)


@converts
@pytest.mark.slow
def test_channels_of_bias_alone_and_layers_of_nothing_do_no_harm(tmp_path: Path) -> None:
    ours, file = with_a_channel_of_bias_alone(shipped()), tmp_path / "a.tflite"
    dead = ours.get_submodule("network.layer2.1.conv1")
    assert isinstance(dead, nn.Conv2d) and dead.bias is not None
    dead.weight.data.zero_()
    dead.bias.data.fill_(-1)  # and so always 0 after ReLU
    litert.write(ours, file, HEADER, "stretch", pixels(64, seed=2), Rung())
    said, expected = torch.from_numpy(runtime.Opened(file, 1)(pixels(64).numpy())), ours(pixels(64))
    assert (said - expected).abs().mean() < 0.03 * expected.std()


@converts
@pytest.mark.slow
def test_a_layer_that_is_not_there_cannot_stay_in_float(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=re.escape("not in the converted graph, and so not to be left in float: nowhere")
    ):
        litert.write(shipped(), tmp_path / "a.tflite", HEADER, "stretch", pixels(4), Rung(float_layers=("nowhere",)))
