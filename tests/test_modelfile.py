"""A model file holds all that a classifier needs, and anything that is not one is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import weightclass as wc
from weightclass import config, modelfile, recipe
from weightclass.errors import UserError
from weightclass.evaluation.views import VIEWS
from weightclass.model import networks
from weightclass.modelfile import Classifier

SHAPE, CLASSES = (1, 8, 8), tuple("0123456789")


def made_up(*overrides: str) -> Classifier:
    settings = recipe.load("quickstart", *(overrides or ("model.blocks=1,1", "model.channels=4,8"))).recipe
    network = networks.build(settings.model, SHAPE, 10, seed=3).eval()
    facts = {"accuracy": 0.5, "interval": [0.4, 0.6]}
    return Classifier(network, settings, "made up", CLASSES, SHAPE, mean=(0.3,), std=(0.2,), facts=facts)


def pictures(count: int = 5) -> torch.Tensor:
    return (torch.arange(count * 64).view(count, 1, 8, 8) * 37 % 256).to(torch.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    modelfile.save(tmp_path / modelfile.FILE_NAME, made_up())
    return tmp_path / modelfile.FILE_NAME


def changed(path: Path, **header: str | None) -> Path:
    """The file with other header entries; None takes one out."""
    with safe_open(path, "pt") as handle:
        entries = {key: value for key, value in (handle.metadata() | header).items() if value is not None}
    save_file(load_file(path), path, entries)
    return path


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    model, file = made_up(), tmp_path / "new" / "model.safetensors"
    assert modelfile.save(file, model) == file.stat().st_size
    for given in (file, str(file), file.parent):
        loaded = wc.load(given)
        for key in ("recipe", "name", "classes", "image_shape", "mean", "std", "facts"):
            assert getattr(loaded, key) == getattr(model, key), key
        assert loaded.path == file
        assert not loaded.network.training
        assert torch.equal(loaded.logits(pictures()), model.logits(pictures()))


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.preactivation=true", "model.stem_channels=8", "model.se=blocks"),
        ("model.se=stem", "model.preactivation=blocks"),
        ("model.name=mobilenetv2", "model.width=0.1"),
    ],
)
def test_every_network_comes_back(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    model = made_up(*overrides)
    modelfile.save(tmp_path / modelfile.FILE_NAME, model)
    assert torch.equal(wc.load(tmp_path).logits(pictures()), model.logits(pictures()))


@pytest.mark.parametrize("overrides", [(), ("model.se=blocks",), ("model.name=mobilenetv2", "model.width=0.1")])
def test_half_precision_keeps_norms_and_hardly_moves_logits(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    model, drawn = made_up(*overrides), torch.Generator().manual_seed(1)
    for name, tensor in model.network.state_dict().items():
        if tensor.ndim == 1 and not name.startswith("linear"):
            tensor.uniform_(0.5, 1.5, generator=drawn)  # of norms: no fp16 numbers
    size = modelfile.save(tmp_path / "whole", model)
    weights = sum(tensor.numel() for tensor in model.network.state_dict().values() if tensor.ndim > 1)
    assert size - modelfile.save(tmp_path / "half", model, half=True) == pytest.approx(2 * weights, rel=0.2)
    loaded = wc.load(tmp_path / "half")
    for name, tensor in model.network.state_dict().items():
        found = loaded.network.state_dict()[name]
        assert torch.equal(found, tensor if tensor.ndim < 2 else tensor.half().float())
    said, expected = loaded.logits(pictures(64)), model.logits(pictures(64))
    assert 0 < (said - expected).abs().max() < 0.01 * expected.std()
    modelfile.save(tmp_path / "again", loaded, half=True)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "half").read_bytes()


def test_logits_are_those_of_the_normalised_images() -> None:
    model = made_up()
    with torch.no_grad():
        expected = model.network((pictures().float() / 255 - 0.3) / 0.2)
    torch.testing.assert_close(model.logits(pictures()), expected, rtol=1e-4, atol=1e-5)
    answers = model.predict(pictures(), top=3)
    assert [answer.label for answer in answers] == [CLASSES[i] for i in expected.argmax(1).tolist()]
    for answer, row in zip(answers, expected.softmax(1), strict=True):
        best = sorted(zip(row.tolist(), CLASSES, strict=True), reverse=True)[:3]
        assert [label for label, _ in answer.top] == [label for _, label in best]
        assert [share for _, share in answer.top] == pytest.approx([share for share, _ in best], abs=1e-5)
        assert answer.top[0] == (answer.label, answer.confidence)


def test_pictures_of_any_kind_and_size_are_read(tmp_path: Path) -> None:
    model, array = made_up(), np.arange(400, dtype=np.int64).reshape(20, 20).astype(np.uint8)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "one.png")
    answers = model.predict([array, picture, tmp_path / "one.png", str(tmp_path / "one.png"), np.dstack([array] * 3)])
    assert len({answer.label for answer in answers}) == 1
    assert torch.equal(model.read(picture), model.read(array))
    assert not torch.equal(model.read(picture, "pad"), model.read(np.ascontiguousarray(array[:, :9]), "pad"))


def test_one_picture_or_many_or_none() -> None:
    model, array = made_up(), np.full((20, 20), 7, np.uint8)
    for one in (array, np.dstack([array] * 3), array[:, :, None], Image.fromarray(array), pictures(1)[0]):
        assert len(model.predict(one)) == 1
    assert len(model.predict(np.stack([array] * 3))) == len(model.predict(pictures(3).unbind())) == 3
    assert model.predict([]) == []


@pytest.mark.parametrize("array", [np.zeros((9, 9, 3)), np.zeros((9, 9, 3), np.int64)])
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"an array of .* is no picture: give uint8"):
        made_up().predict([array])


def test_no_answer_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match="top = 0: ask for one class at least"):
        made_up().predict(pictures(1), top=0)


def test_equal_models_make_equal_files(tmp_path: Path) -> None:
    for number in range(3):
        modelfile.save(tmp_path / str(number), made_up())
    assert len({(tmp_path / str(number)).read_bytes() for number in range(3)}) == 1


def test_there_are_no_more_answers_than_classes() -> None:
    assert len(made_up().predict(pictures(1), top=99)[0].top) == 10


@pytest.mark.parametrize("images", [pictures().float(), pictures()[:, :, :7], pictures().expand(-1, 3, -1, -1)])
def test_foreign_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"takes uint8 images \(1, 8, 8\), got torch\.(uint8|float32) \("):
        made_up().logits(images)


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        wc.load(path)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    refused(tmp_path, r"no model.safetensors there; give a finished run's folder or a model file")
    refused(tmp_path / "absent.safetensors", r"absent.safetensors: no model.safetensors there")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, json.dumps({"a": 1}).encode()])
def test_garbage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "model.safetensors: not a readable safetensors file")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_file(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refused(path, "not a readable safetensors file")


def test_somebody_elses_safetensors(path: Path) -> None:
    refused(changed(path, format="weightclass/2"), r"its format is weightclass/2, this version reads weightclass/1")
    save_file(load_file(path), path, {"format": "pt"})
    refused(path, r"does not say how its images were normalised: give --mean and --std with 1 number")


def test_published_weights_load_with_what_is_said_of_them(tmp_path: Path) -> None:
    settings = recipe.load("small-cpu").recipe
    network = networks.build(settings.model, (3, 32, 32), 10, seed=3).eval()
    torch.save({"net": {f"module.{name}": tensor for name, tensor in network.state_dict().items()}}, tmp_path / "a.pth")
    model = wc.load(tmp_path / "a.pth", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert (model.name, model.classes[3], model.image_shape) == ("a", "cat", (3, 32, 32))
    assert (model.recipe.model, model.recipe.data.name) == (settings.model, "cifar10")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.no_grad():
        expected = network((images / 255 - mean) / std)
    torch.testing.assert_close(model.logits(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"augment|std|--mean"):
        wc.load(tmp_path / "a.pth", mean=(0.5,) * 3, std=(0.0,) * 3)


def test_our_own_files_say_themselves_how_images_are_prepared(path: Path) -> None:
    with pytest.raises(UserError, match=r"leave out --mean, --std, --pool and --size"):
        wc.load(path, mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in ("recipe", "name", "classes", "image_shape", "normalisation", "facts")),
        *((key, "{") for key in ("recipe", "classes", "image_shape", "normalisation", "facts")),
        *(("facts", "[]"), ("classes", "[1, 2]"), ("classes", '"ab"'), ("normalisation", '{"mean": "a", "std": [1]}')),
        *(("normalisation", value) for value in ("{}", "[]", '{"mean": 1, "std": [1]}')),
        *(("image_shape", value) for value in ("3", "[8, 8]", '["a", 8, 8]')),
        ("classes", "10"),
        ("recipe", "[model]\nchannel = 3\n"),
    ],
)
def test_a_broken_header(path: Path, key: str, value: str | None) -> None:
    refused(changed(path, **{key: value}), "model.safetensors")


def test_weights_that_do_not_fit(path: Path) -> None:
    classes = json.dumps(CLASSES[:9])
    refused(changed(path, classes=classes), r"weights and recipe do not fit: size mismatch for linear")
    tensors = load_file(path)
    del tensors["linear.bias"]
    with safe_open(path, "pt") as handle:
        save_file(tensors, path, handle.metadata())
    refused(path, r"weights and recipe do not fit")


def test_weights_of_another_recipe_do_not_fit(path: Path) -> None:
    """The recipe in the header builds the network: other widths do not fit."""
    settings = made_up().recipe
    other = msgspec.structs.replace(settings.model, channels=(4, 6))
    refused(changed(path, recipe=config.to_toml(msgspec.structs.replace(settings, model=other))), "do not fit")


def test_a_recipe_that_asks_for_much_takes_no_memory(path: Path) -> None:
    """A file of a few kB may name a network of many GB; it is compared without being built."""
    settings = made_up().recipe
    other = msgspec.structs.replace(settings.model, blocks=(1,), channels=(60_000,))
    refused(changed(path, recipe=config.to_toml(msgspec.structs.replace(settings, model=other))), "do not fit")


def test_weights_of_half_precision_load_as_float32(path: Path) -> None:
    with safe_open(path, "pt") as handle:
        header = handle.metadata()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
    save_file(half, path, header)
    torch.testing.assert_close(wc.load(path).logits(pictures()), made_up().logits(pictures()), rtol=0.05, atol=0.05)


# --- exported files ----------------------------------------------------------------------------------------


def peer(path: Path, kind: int, sides: tuple[object, object] = (8, 8), classes: int = 10) -> Path:
    """Somebody's ONNX file: a linear layer of the mean colour."""
    import onnx
    from onnx import TensorProto, helper

    weight = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("GlobalAveragePool", ["values"], ["means"])]
    nodes += [helper.make_node("Flatten", ["means"], ["flat"]), helper.make_node("MatMul", ["flat", "weight"], ["out"])]
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("image", kind, ["n", 3, *sides])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", classes])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def colour(count: int = 5) -> torch.Tensor:
    return (torch.arange(count * 192).view(count, 3, 8, 8) * 37 % 256).to(torch.uint8)


def test_a_peers_file_gets_the_images_it_was_trained_on(tmp_path: Path) -> None:
    floats, pixels = peer(tmp_path / "floats.onnx", 1), peer(tmp_path / "pixels.onnx", 2)
    raw = wc.load(pixels)
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(raw.logits(colour()), colour().float().mean((2, 3)) @ weight, rtol=1e-5, atol=1e-3)
    model = wc.load(floats, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    expected = ((colour() / 255 - 0.5) / 0.2).mean((2, 3)) @ weight
    torch.testing.assert_close(model.logits(colour()), expected, rtol=1e-4, atol=1e-3)
    assert (model.classes[3], model.image_shape, model.path) == ("cat", (3, 8, 8), floats)


def test_views_of_a_file_that_takes_pixels_are_those_of_the_pixels(tmp_path: Path) -> None:
    model = wc.load(peer(tmp_path / "pixels.onnx", 2))
    mirrored = 0.5 * model.logits(colour()) + 0.5 * model.logits(colour().flip(3))
    torch.testing.assert_close(model.logits(colour(), VIEWS["flip"]), mirrored)
    assert model.logits(colour(), VIEWS["flip+shift"]).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "sides", "said", "message"),
    [
        (1, (8, 8), {}, "give --mean and --std with 3 number"),
        (2, (8, 8), {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "takes pixels as they are: leave out --mean and --std"),
        (2, (8, 8), {"size": 16}, "takes images of 8x8: leave out --size"),
        (2, (8, 8), {"on": "cuda"}, "runs on the CPU: leave out --device cuda"),
    ],
)
def test_a_peers_file_that_is_told_wrongly(
    tmp_path: Path, kind: int, sides: tuple[int, int], said: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        wc.load(peer(tmp_path / "peer.onnx", kind, sides), **said)


def test_a_peers_open_sides_are_as_it_is_said(tmp_path: Path) -> None:
    assert wc.load(peer(tmp_path / "peer.onnx", 2, ("h", "w")), size=8).image_shape == (3, 8, 8)
