from __future__ import annotations

import argparse
import io
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tests.reference.plain_resnet import PlainResNet
from weightclass.errors import UserError
from weightclass.model.networks import build
from weightclass.model.published import Published, infer, read
from weightclass.model.resnet import ResNet, ResNetConfig

# (blocks, channels, pool, parameters) of networks that the paper's authors trained
PAPER = [
    ((2, 2, 2, 2), (16, 32, 64, 128), 4, 701_466),
    ((3, 3, 3, 3), (128, 100, 164, 200), 4, 4_978_810),
    ((3, 4, 3), (64, 128, 256), 8, 4_623_178),
    ((3, 4, 6, 3), (32, 64, 128, 256), 4, 5_326_506),
]
SMALL = ResNetConfig(blocks=(1, 2), channels=(4, 6), pool="avg(4)")  # for 8x8 images
Weights = dict[str, Tensor]


def images(*shape: int) -> Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7).view(shape)


def worn(network: nn.Module, seed: int = 0) -> nn.Module:
    """As if trained: norms' statistics and scales that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.running_mean, module.bias):
                    tensor.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr]
                for tensor in (module.running_var, module.weight):
                    tensor.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    return network.eval()


def weights_of(config: ResNetConfig, size: int) -> Weights:
    return dict(worn(build(config, (3, size, size), 5, seed=1)).state_dict())


SMALL_WEIGHTS = weights_of(SMALL, 8)


def small() -> Weights:
    return dict(SMALL_WEIGHTS)


def rebuilt(found: Published) -> ResNet:
    network = build(found.config, found.image_shape, found.classes, seed=0)
    network.load_state_dict(found.weights)  # strict
    return network.eval()


def torch_bytes(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def written(path: Path, content: Any, **how: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else torch_bytes(content, **how))
    return path


def complaint(act: Callable[[], Any]) -> str:
    """What `act` has to say to the user, in one line; "" where it is content."""
    try:
        act()
    except UserError as error:
        text = str(error)
    else:
        return ""
    assert re.fullmatch(r"[^\n]+", text)
    return text


def refused(path: Path) -> str:
    text = complaint(lambda: read(path))
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


# --- the same logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "channels", "pool", "parameters"), PAPER)
def test_a_published_network_gives_its_own_logits(*, blocks, channels, pool, parameters, tmp_path):
    ones, threes = [1] * len(blocks), [3] * len(blocks)
    torch.manual_seed(0)
    theirs = PlainResNet(
        blocks=blocks, channels=channels, kernels=threes, skip_kernels=ones, pool=pool, features=channels[-1]
    )
    batch = images(2, 3, 32, 32)
    expected = worn(theirs)(batch)
    assert expected.std() > 0.1  # logits that could differ
    weights = theirs.state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
    for path in (
        written(tmp_path / "net.pth", {"net": prefixed, "acc": 97.12, "epoch": 300}),
        written(tmp_path / "net.safetensors", to_safetensors(weights)),
    ):
        found = infer(read(path), str(path))
        assert found.config == ResNetConfig(blocks=blocks, channels=channels, pool=f"avg({pool})")
        assert (found.image_shape, found.classes) == ((3, 32, 32), 10)
        network = build(found.config, found.image_shape, found.classes).eval()
        assert found.weights.keys() == network.state_dict().keys()
        network.load_state_dict(found.weights, assign=True)  # what a seed would draw first takes a second
        assert sum(p.numel() for p in network.parameters()) == parameters
        torch.testing.assert_close(network(batch), expected, atol=1e-5, rtol=0)


@st.composite
def architectures(draw: st.DrawFn) -> tuple[ResNetConfig, int]:
    """Small networks in the spelling that `infer` returns, with an image size."""
    layers = draw(st.integers(1, 3))

    def per_layer(values: list[int]) -> int | tuple[int, ...]:
        return values[0] if len(set(values)) == 1 else tuple(values)

    def several(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=layers, max_size=layers))

    size = draw(st.integers(2**layers, 20))
    skips = [2 * k + 1 for k in several(0, 2)]
    config = ResNetConfig(
        blocks=tuple(several(1, 2)),
        channels=tuple(several(1, 4)),
        kernels=per_layer([2 * k + 1 for k in several(0, 2)]),
        skip_kernels=per_layer([skips[1], *skips[1:]] if layers > 1 else [1]),
        stem_kernel=draw(st.sampled_from([1, 3, 5, 9])),
        norm=draw(st.sampled_from(["batch", "none"])),
        pool=f"avg({draw(st.integers(1, -(-size // 2 ** (layers - 1))))})",
    )
    return config, size


@given(case=architectures(), channels=st.sampled_from([1, 3]), other=st.booleans(), counters=st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_architecture_comes_back(case, channels, other, counters):
    config, size = case
    network = worn(build(config, (channels, size, size), 3, seed=2))
    names = {"linear.": "fc.", ".shortcut.": ".downsample."} if other else {}
    weights = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if counters or not name.endswith("num_batches_tracked"):
            weights[name] = tensor
    last = -(-size // 2 ** (len(config.blocks) - 1))
    if last % int(config.pool[4:-1]) == 0:
        found = infer(weights, "net.pth", size)
    else:  # what the pool leaves over at the edge cannot be seen
        asked = complaint(lambda: infer(weights, "net.pth", size))
        assert f'--pool "{config.pool}"' in asked or infer(weights, "net.pth", size).config.pool != config.pool
        found = infer(weights, "net.pth", size, config.pool)
    assert found.config == config
    batch = images(2, channels, size, size)
    assert torch.equal(rebuilt(found)(batch), network(batch))


# --- files -------------------------------------------------------------------------------------------------

WRAPS: dict[str, Callable[[Weights], Any]] = {
    "bare": lambda w: w,
    "parameters": lambda w: {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in w.items()},
    "net": lambda w: {"net": w, "acc": torch.tensor(93.1), "epoch": 3, "args": {"lr": 0.1}},
    "model": lambda w: {"arch": "resnet", "model": w},
    "name beside": lambda w: {"model": "resnet", "model_state_dict": w, "optimizer": {"state": {}}},
    "lightning": lambda w: {"epoch": 1, "state_dict": {f"model.net.{name}": t for name, t in w.items()}},
    "nested": lambda w: {"model": {"state_dict": {f"backbone.{name}": t for name, t in w.items()}}},
    "parallel": lambda w: {f"module.module.{name}": t for name, t in w.items()},
    "compiled": lambda w: {"net": {f"_orig_mod.module._orig_mod.{name}": t for name, t in w.items()}},
    "compiled inside": lambda w: {"state_dict": {f"model._orig_mod.{name}": t for name, t in w.items()}},
    "compiled layer": lambda w: {name.replace("layer2.", "layer2._orig_mod."): t for name, t in w.items()},
    "averaged": lambda w: {"n_averaged": torch.tensor(9), **{f"module.{name}": t for name, t in w.items()}},
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrapped_and_prefixed_weights_are_found(tmp_path, wrap, zipped):
    weights = small()
    path = written(tmp_path / "any.name", WRAPS[wrap](weights), _use_new_zipfile_serialization=zipped)
    found = read(path)
    assert found.keys() == {name for name in weights if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    assert infer(found, "net", 8).config == SMALL


@pytest.mark.parametrize("protocol", [2, 3])
def test_torchs_warnings_stay_inside(tmp_path, protocol):
    how = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
    path = written(tmp_path / "net.pth", small(), **how)
    assert infer(read(path), "net", 8).config == SMALL


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small().items()}
    for content in (to_safetensors(weights), torch_bytes(weights)):
        found = read(written(tmp_path / "net", content))
        assert all(t.dtype == torch.float32 and torch.equal(t, weights[name].float()) for name, t in found.items())


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_a_file_is_run(tmp_path):
    for zipped in (True, False):
        content = {"net": small(), "trap": Trap(tmp_path / "sprung")}
        path = written(tmp_path / "net.pth", content, _use_new_zipfile_serialization=zipped)
        assert "it could run its author's code" in refused(path)
    assert not (tmp_path / "sprung").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap was a trap


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_are_named_with_a_cure(tmp_path, monkeypatch, zipped):
    theirs = type("ResNet", (nn.Module,), {"__module__": "__main__"})
    monkeypatch.setattr(sys.modules["__main__"], "ResNet", theirs, raising=False)
    found = {
        "__main__.ResNet": theirs(),
        "argparse.Namespace": {"net": small(), "args": argparse.Namespace(lr=0.1)},
        "multiarray.scalar": {"net": small(), "acc": np.float64(0.9)},
    }
    for name, content in found.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a module's source is looked for when it is saved
            path = written(tmp_path / "net.pth", content, _use_new_zipfile_serialization=zipped)
        text = refused(path)
        assert re.search(rf"holds \S*{re.escape(name)}, and no object but tensors and plain values", text)
        assert 'torch.save(model.state_dict(), "net.pth")' in text


def test_torchscript_is_refused(tmp_path):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), buffer)
    assert "TorchScript" in refused(written(tmp_path / "net.pt", buffer.getvalue()))


def looped() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["net"] = content
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "it begins with b'hello'"),
        (b"<!DOCTYPE html>\n<html>", "it begins with b'<!DOCTYPE ht': fetch it anew"),
        (b"\x80\x04\x95\x00\x00\x00", "neither a safetensors nor a torch file"),
        (bytes(range(255, 0, -1)) * 20, "neither a safetensors nor a torch file"),
        (torch_bytes(small())[:5000], "damaged"),
        (torch_bytes(small(), _use_new_zipfile_serialization=False)[:900], "damaged"),
        (to_safetensors(small())[:5000], "damaged"),
        (b"PK\3\4" + bytes(40), "damaged"),
        (torch_bytes([1, 2]), "no weights in it"),
        (torch_bytes({"net": {"epoch": 3}}), "no weights in it"),
        (torch_bytes(looped()), "no weights in it"),
        (torch_bytes({"fc.weight": torch.ones(2, 3), "module.fc.weight": torch.zeros(2, 3)}), "under two prefixes"),
        (torch_bytes({"conv1.weight": torch.ones(2).to(torch.int8)}), "'conv1.weight' is not a plain tensor"),
        (torch_bytes({"conv1.weight": torch.ones(2).to_sparse()}), "not a plain tensor"),
        (torch_bytes({"conv1.weight": torch.ones(1).expand(2**50)}), "not a plain tensor"),
        (torch_bytes({"conv1.weight": torch.empty(2, device="meta")}), "not a plain tensor"),
        (torch_bytes({"conv1.weight": torch.tensor([1.0, torch.nan])}), "of finite real numbers"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, content, reason):
    assert reason in refused(written(tmp_path / "net.pth", content))


def test_nested_tensors_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        path = written(tmp_path / "net.pth", {"conv1.weight": torch.nested.nested_tensor([torch.ones(2)])})
    assert "not a plain tensor" in refused(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read" in refused(tmp_path / "missing.pth")
    assert "cannot be read" in refused(tmp_path)


# --- what the network cannot be ----------------------------------------------------------------------------


def without(weights: Weights, pattern: str) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not re.search(pattern, name)}


def option_a() -> Weights:
    return without(small(), "shortcut")


BROKEN: dict[str, tuple[Callable[[], Weights], str]] = {
    "ImageNet": (lambda: small() | {"conv1.weight": torch.ones(4, 3, 7, 7)}, "ImageNet's 7x7 stem"),
    "bottleneck": (
        lambda: small() | {"layer1.0.conv3.weight": torch.ones(16, 4, 1, 1)},
        "'layer1.0.conv3.weight' is no part",
    ),
    "five channels": (lambda: small() | {"conv1.weight": torch.ones(4, 5, 3, 3)}, "conv1 is 3x3 on 5 channels"),
    "option A": (option_a, r"layer2.0.shortcut.0.weight is missing: shortcuts without parameters \(option A\) are not"),
    "SE block": (lambda: small() | {"layer1.0.se.fc1.weight": torch.ones(1, 4)}, "'layer1.0.se.fc1.weight' is no part"),
    "first-layer shortcut": (
        lambda: small() | {"layer1.0.downsample.0.weight": torch.ones(4, 4, 1, 1)},
        "'layer1.0.shortcut.0.weight' is no part",
    ),
    "missing norm": (lambda: without(small(), "layer2.1.bn2.running_var"), "layer2.1.bn2.running_var is missing"),
    "missing block": (lambda: without(small(), "layer2.0"), "layer2.0.conv1.weight is missing"),
    "missing linear": (lambda: without(small(), "linear"), "linear.weight is missing"),
    "shape": (
        lambda: small() | {"layer2.1.conv2.weight": torch.ones(6, 6, 5, 5)},
        "layer2.1.conv2.weight is 6x6x5x5 where 6x6x3x3 was expected",
    ),
    "depthwise": (
        lambda: small() | {"layer1.0.conv2.weight": torch.ones(4, 1, 3, 3)},
        "layer1.0.conv2.weight is 4x1x3x3 where 4x4x3x3 .*grouped convolutions are not supported",
    ),
    "even kernel": (
        lambda: small() | {"layer1.0.conv1.weight": torch.ones(4, 4, 2, 2)},
        "conv1.weight is 4x4x2x2: .*odd square kernels",
    ),
    "long kernel": (
        lambda: small() | {"conv1.weight": torch.ones(4, 3, 3, 1)},
        "conv1.weight is 4x3x3x1: .*odd square kernels",
    ),
    "flat": (lambda: small() | {"conv1.weight": torch.ones(4, 27)}, "conv1.weight is 4x27: expected 4 axes"),
    "empty": (lambda: small() | {"linear.weight": torch.ones(0, 6)}, "linear.weight is 0x6: expected 2 axes, none"),
    "twice": (lambda: small() | {"fc.weight": torch.ones(5, 6)}, "under two names"),
    "another kind": (
        lambda: {f"features.{i}": torch.ones(3) for i in range(9)},
        "expected conv1, layer1.0.conv1 and so on, found 'features.0', 'features.1', 'features.2'$",
    ),
    "nothing": (dict, "found nothing"),
    "features": (lambda: small() | {"linear.weight": torch.ones(5, 7)}, "7 inputs, which is no square of pixels for 6"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_other_networks_are_refused(name):
    weights, reason = BROKEN[name]
    assert re.search(f"^net.pth: .*{reason}", complaint(lambda: infer(weights(), "net.pth", 8)))


@pytest.mark.parametrize(
    ("trained", "size", "wish", "pool"),
    [
        ("avg(4)", 8, "", "avg(4)"),
        ("avg(2)", 8, "", "avg(2)"),
        ("avg(1)", 8, "", "avg(1)"),
        ("avg(5)", 9, "", "avg(5)"),
        ("global", 8, "", "avg(4)"),  # the same
        ("global", 8, "global", "global"),
        ("avg(3)", 8, "", "avg(4)"),  # what divides the map is the likelier
        ("avg(3)", 8, "avg(3)", "avg(3)"),
        ("max(4)", 8, "max(4)", "max(4)"),
        ("avg(2)", 10, "avg(2)", "avg(2)"),
    ],
)
def test_the_pool_is_what_the_linear_layer_needs(trained, size, wish, pool):
    weights = weights_of(structs.replace(SMALL, pool=trained), size)
    assert infer(weights, "net.pth", size, wish).config.pool == pool


@pytest.mark.parametrize(
    ("trained", "size", "wish", "reason"),
    [
        ("avg(2)", 10, "", 'weights do not tell which pool leaves 2x2 pixels of 5x5: add --pool "avg(2)"'),
        ("avg(4)", 22, "", 'leaves 2x2 pixels of 11x11: add --pool "avg(5)" or --pool "avg(4)"'),
        ("avg(4)", 8, "avg(2)", '--pool avg(2) leaves no 1x1 pixels of 4x4: use "avg(4)"'),
        ("avg(4)", 8, "mean", "--pool mean leaves no 1x1"),
        ("avg(1)", 8, "global", 'use "avg(1)"'),
    ],
)
def test_a_pool_that_is_not_known_is_asked_for(trained, size, wish, reason):
    weights = weights_of(structs.replace(SMALL, pool=trained), size)
    assert reason in complaint(lambda: infer(weights, "net.pth", size, wish))


@pytest.mark.parametrize(("size", "least"), [(0, 6), (-3, 6), (1, 6), (4, 6), (8, 6)])
def test_another_image_size_is_named(size, least):
    weights = weights_of(structs.replace(SMALL, pool="avg(1)"), 6)
    text = complaint(lambda: infer(weights, "net.pth", size))
    assert f"54 inputs, which {size}x{size} images cannot give: add --size {least} or a multiple of it" in text
    for multiple in (least, 2 * least, 5 * least):
        assert infer(weights, "net.pth", multiple).config.pool == f"avg({multiple // least})"


def test_images_too_small_to_halve_are_refused():
    weights = weights_of(ResNetConfig(blocks=(1, 1, 1), channels=(2, 2, 2), pool="global"), 8)
    assert "2x2 images cannot give: add --size 4 or" in complaint(lambda: infer(weights, "net.pth", 2))
    assert rebuilt(infer(weights, "net.pth", 3)).pool == ("avg", 1)


# --- damage ------------------------------------------------------------------------------------------------

WHOLE = [torch_bytes({"net": small()}), torch_bytes(small(), _use_new_zipfile_serialization=False)]
WHOLE.append(to_safetensors(small()))


@given(data=st.data(), content=st.sampled_from(WHOLE))
@settings(max_examples=50, deadline=None)
def test_damaged_bytes_give_one_line_or_a_network(tmp_path_factory, data, content):
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 600))
    patch = data.draw(st.binary(max_size=4))
    cut = data.draw(st.integers(0, 4))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content[:place] + patch + content[place + cut :])
    complaint(lambda: rebuilt(infer(read(path), str(path), 8)))


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_damaged_weights_give_one_line_or_a_network(data):
    weights = small()
    names = st.sampled_from(sorted(weights))
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(names)
        kind = data.draw(st.sampled_from(["drop", "rename", "reshape", "swap"]))
        tensor = weights.pop(name, torch.zeros(()))
        if kind == "rename":
            weights[data.draw(st.text(max_size=5) | names.map(lambda n: n.replace("1", "2")))] = tensor
        elif kind == "reshape":
            weights[name] = torch.ones(data.draw(st.lists(st.integers(0, 5), max_size=5)))
        elif kind == "swap":
            weights[name] = weights.get(data.draw(names), tensor)
    complaint(lambda: rebuilt(infer(weights, "net.pth", 8)))


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3_000_000)}, tmp_path / "flat.pth")
    with ZipFile(tmp_path / "flat.pth") as flat, ZipFile(tmp_path / "bomb.pth", "w", ZIP_DEFLATED) as bomb:
        for entry in flat.infolist():
            bomb.writestr(entry.filename, flat.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 50_000
    with pytest.raises(UserError, match="damaged, or not a file of weights"):
        read(tmp_path / "bomb.pth")


def test_weights_under_any_single_name_are_found(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in build(SMALL, (3, 8, 8), 5, seed=0).state_dict().items()}
    optimizer = {"state": {0: {"momentum": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"model_state": weights, "optimizer": optimizer, "epoch": 3}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth").keys() == {name for name in weights if "num_batches" not in name}
    torch.save({"one": weights, "two": weights}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="no weights in it"):
        read(tmp_path / "b.pth")
