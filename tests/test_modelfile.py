"""A model file holds all that a classifier needs, and anything that is not one is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import weightclass as wc
from weightclass import config, modelfile, recipe
from weightclass.errors import UserError
from weightclass.model import resnet
from weightclass.modelfile import Classifier

SHAPE, CLASSES = (1, 8, 8), tuple("0123456789")


def made_up() -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    network = resnet.build(settings.model, SHAPE, 10, seed=3).eval()
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


def test_logits_are_those_of_the_normalised_images() -> None:
    model = made_up()
    with torch.no_grad():
        expected = model.network((pictures().float() / 255 - 0.3) / 0.2)
    torch.testing.assert_close(model.logits(pictures()), expected, rtol=1e-4, atol=1e-5)
    assert model.predict(pictures()) == [CLASSES[i] for i in expected.argmax(1).tolist()]


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
    refused(changed(path, format="pt"), r"its header is not weightclass/1")
    save_file(load_file(path), path)
    refused(path, r"its header is not weightclass/1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, None) for key in ("recipe", "name", "classes", "image_shape", "normalisation", "facts")),
        *((key, "{") for key in ("recipe", "classes", "image_shape", "normalisation", "facts")),
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
