"""ONNX files: the network's own answers, a graph that fits pictures as data/fit.py does, int8 where it is meant."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

import onnx  # noqa: E402

from weightclass import recipe  # noqa: E402
from weightclass.data.fit import Fit, fitted  # noqa: E402
from weightclass.edge import onnx as edge  # noqa: E402
from weightclass.edge.onnx import _FITS, front, write, write_half  # noqa: E402
from weightclass.edge.rungs import Rung  # noqa: E402
from weightclass.edge.shipped import Shipped  # noqa: E402
from weightclass.model import networks  # noqa: E402
from weightclass.runtimes.onnx import Opened  # noqa: E402

RGB = (3, 8, 8)
HEADER = {"format": "weightclass/1", "image_shape": "[3, 8, 8]", "classes": '["a", "b", "c"]', "export": "{}"}
ROOT = Path(__file__).parents[2]


def shipped(*settings: str, shape: tuple[int, int, int] = RGB, base: str = "quickstart") -> Shipped:
    """A made-up network whose norms have seen something and whose biases are not zero."""
    small = ("model.blocks=1,1", "model.pool=global") if base == "quickstart" else ()
    small += ("model.channels=8,16",) * (base == "quickstart" and "model.channels=32,64" not in settings)
    network = networks.build(recipe.load(base, *small, *settings).recipe.model, shape, 3, seed=3)
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    for _ in range(10):
        network.train()(torch.randn(32, *shape))
    return Shipped(network, shape, (0.4,) * shape[0], (0.25,) * shape[0])


def pixels(n: int, shape: tuple[int, int, int] = RGB) -> Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def net() -> Shipped:
    return shipped("model.channels=32,64")


@pytest.fixture(scope="module")
def folder(net: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.onnx, half.onnx, int8.onnx with one layer in float, and tensor.onnx: a scale a tensor, 7 bits.

    Exported once: that takes seconds.
    """
    folder, exported = tmp_path_factory.mktemp("onnx"), edge._exported(net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "_exported", lambda _: copy.deepcopy(exported))
        write(net, folder / "net.onnx", HEADER, "crop")
        write_half(net, folder / "half.onnx", HEADER, "crop")
        write(net, folder / "int8.onnx", HEADER, "crop", pixels(100), Rung(float_layers=("network.layer1.0.conv2",)))
        write(net, folder / "tensor.onnx", HEADER, "crop", pixels(64), Rung(per_channel=False, reduce_range=True))
    return folder


def said_by(path: Path, images: Tensor) -> Tensor:
    return torch.from_numpy(Opened(path, threads=1)(images.numpy()))


# --- what it says ------------------------------------------------------------------------------------------

KINDS = [
    pytest.param(("model.preactivation=true", "model.se=blocks", "model.downsample=maxpool"), (1, 9, 7)),
    pytest.param(
        ("model.preactivation=blocks", "model.se=stem", "model.downsample=avgpool"), RGB, marks=pytest.mark.slow
    ),
    pytest.param(("model.norm=none", "model.activation=gelu", "model.kernels=5"), RGB, marks=pytest.mark.slow),
    pytest.param(("model.activation=silu", "model.downsample=maxpool"), (3, 9, 12), marks=pytest.mark.slow),
]


def test_the_file_says_what_the_network_says(net: Shipped, folder: Path) -> None:
    torch.testing.assert_close(said_by(folder / "net.onnx", pixels(300)), net(pixels(300)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("settings", "shape"), KINDS)
def test_whatever_its_kind(settings: tuple[str, ...], shape: tuple[int, int, int], tmp_path: Path) -> None:
    net = shipped(*settings, shape=shape)
    write(net, tmp_path / "net.onnx", HEADER | {"image_shape": str([*shape])}, "pad")
    images = pixels(5, shape)
    torch.testing.assert_close(said_by(tmp_path / "net.onnx", images), net(images), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("rung", [None, Rung()])
def test_mobilenet(rung: Rung | None, tmp_path: Path) -> None:
    net = shipped("model.width=0.25", base="mobilenetv2")
    write(net, tmp_path / "net.onnx", HEADER, "crop", pixels(64), rung)
    said, meant = said_by(tmp_path / "net.onnx", pixels(64)), net(pixels(64))
    assert (said - meant).abs().max() < (1e-4 if rung is None else meant.std())
    if rung is not None:
        run = optimised(tmp_path / "net.onnx")
        assert (run["QLinearConv"], run["QuantizeLinear"]) == (len(net.layers), 1)


def test_half_the_bytes_and_the_same_answers(net: Shipped, folder: Path) -> None:
    assert (folder / "half.onnx").stat().st_size <= 0.56 * (folder / "net.onnx").stat().st_size
    said, meant = said_by(folder / "half.onnx", pixels(9)), net(pixels(9))
    torch.testing.assert_close(said, meant, atol=1e-2, rtol=0)
    assert (said - meant).abs().max() > 1e-5  # rounded it is
    assert optimised(folder / "half.onnx") == optimised(folder / "net.onnx")  # computed in float32, all of it


# --- int8 --------------------------------------------------------------------------------------------------


def optimised(path: Path) -> Counter[str]:
    """Operators that onnxruntime really runs, by kind."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path.with_suffix(".run")), 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path.with_suffix(".run")).graph.node)


def weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_int8_is_one_chain(net: Shipped, folder: Path) -> None:
    run = optimised(folder / "tensor.onnx")
    assert (run["QLinearConv"], run["QLinearAdd"], run["QuantizeLinear"]) == (len(net.layers), 2, 1)
    assert run["Conv"] == run["Relu"] == 0
    assert f"{net.head}.weight" in weights(folder / "tensor.onnx") and run["Gemm"] == 1


def test_layers_that_are_to_stay_in_float_do_so_in_onnxruntime_too(net: Shipped, folder: Path) -> None:
    stored = weights(folder / "int8.onnx")
    assert {name for name in net.layers if f"{name}.weight" in stored} == {"network.layer1.0.conv2"}
    np.testing.assert_array_equal(
        stored["network.layer1.0.conv2.weight"], net.get_parameter("network.layer1.0.conv2.weight")
    )
    run = optimised(folder / "int8.onnx")
    assert (run["QLinearConv"], run["Conv"], run["QLinearAdd"]) == (len(net.layers) - 1, 1, 2)


@pytest.mark.parametrize(("name", "scales", "largest"), [("int8.onnx", 64, 127), ("tensor.onnx", 1, 64)])
def test_scales_and_ranges_are_the_rungs(name: str, scales: int, largest: int, net: Shipped, folder: Path) -> None:
    stored, layer = weights(folder / name), "network.layer2.0.conv1.weight"
    scale, values = stored[f"{layer}_scale"].reshape(-1, 1, 1, 1), stored[f"{layer}_quantized"]
    assert len(np.unique(scale)) == scales
    assert values.dtype == np.int8 and np.abs(values.astype(int)).max() in (largest - 1, largest)
    assert not stored[f"{layer}_zero_point"].any()
    assert (np.abs(values * scale - net.get_parameter(layer).numpy()) <= 0.51 * scale).all()


@pytest.mark.parametrize("name", ["int8.onnx", "tensor.onnx"])
def test_int8_agrees(name: str, net: Shipped, folder: Path) -> None:
    said, meant = said_by(folder / name, pixels(256)), net(pixels(256))
    assert 0 < (said - meant).abs().mean() < 0.1 * meant.std()
    assert (folder / name).stat().st_size < 0.5 * (folder / "net.onnx").stat().st_size


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net.onnx", "half.onnx", "int8.onnx"])
def test_the_file_is_whole_and_tells_nothing_of_this_machine(name: str, folder: Path) -> None:
    model = onnx.load(folder / name)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.key: entry.value for entry in model.metadata_props} == HEADER
    content = (folder / name).read_bytes()
    for path in (ROOT, folder, Path(torch.__file__).parents[1], Path.home()):
        assert str(path).encode() not in content
    assert b".py" not in content and b"stack_trace" not in content
    assert [each.name for each in model.graph.input] == ["pixels"]
    assert [each.name for each in model.graph.output] == ["logits"]
    assert (model.ir_version <= 10) and model.opset_import[0].version <= 21  # onnxruntime 1.19's
    assert {entry.domain for entry in model.opset_import} <= {"", "com.microsoft"}
    assert all(node.domain == "" for node in model.graph.node)


@pytest.mark.slow
def test_the_same_model_makes_the_same_file(net: Shipped, folder: Path, tmp_path: Path) -> None:
    write(net, tmp_path / "net.onnx", HEADER, "crop")
    assert (tmp_path / "net.onnx").read_bytes() == (folder / "net.onnx").read_bytes()


@pytest.mark.slow
def test_writing_says_nothing() -> None:
    code = (
        "import tempfile; from pathlib import Path; from tests.edge.test_onnx import *; import logging\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    write(shipped(), Path(folder, 'a.onnx'), HEADER, 'crop', pixels(9), Rung())\n"
        "    Opened(Path(folder, 'a.onnx'))(pixels(2).numpy())\n"
        "assert not logging.root.handlers and not logging.root.manager.disable"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- fitting -----------------------------------------------------------------------------------------------


def photograph(height: int, width: int, channels: int) -> Tensor:
    """uint8 [C, H, W]: blobs of several sizes and some grain; bright and dark areas are clipped, as in photographs."""
    generator, image = torch.Generator().manual_seed(height * 1000 + width), torch.zeros(1, channels, height, width)
    for cells in (3, 7, 20, 60):
        blobs = torch.rand(1, channels, cells, cells, generator=generator)
        image += F.interpolate(blobs, (height, width), mode="bicubic") / cells**0.5
    image += 0.05 * torch.randn(image.shape, generator=generator)
    image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-6)
    return (image[0] * 300 - 20).round().clamp(0, 255).to(torch.uint8)


SIZES = [(301, 199), (64, 64), (33, 32), (17, 45), (20, 11), (31, 100), (1, 1), (3, 500), (500, 2), (480, 640), (8, 8)]


@pytest.mark.parametrize("fit", _FITS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 40, 24), (1, 28, 28)])
def test_a_picture_of_any_size_is_fitted_as_torch_does_it(fit: Fit, shape: tuple[int, int, int]) -> None:
    model = front(shape, fit)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        image = photograph(*size, shape[0])
        (made,) = session.run(None, {"pixels": image[None].expand(2, -1, -1, -1).numpy()})
        off = (torch.from_numpy(made[1]).int() - fitted(image, shape[1:], fit).int()).abs()
        assert made.dtype == np.uint8 and (off <= 1).double().mean() >= 0.999, size
    image = pixels(3, shape).numpy()
    np.testing.assert_array_equal(session.run(None, {"pixels": image})[0], image)


def test_the_whole_file_takes_a_picture_of_another_size(net: Shipped, folder: Path) -> None:
    image = photograph(50, 31, 3)
    said = Opened(folder / "net.onnx", 1)(image[None].numpy())
    meant = net(fitted(image, (8, 8), "crop")[None])
    torch.testing.assert_close(torch.from_numpy(said), meant, atol=0.1, rtol=0)  # a level here or there
