"""The box of champions: found by name, listed with what they are worth, and never written to."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file

import weightclass as wc
from weightclass import champions, modelfile, recipe
from weightclass.champions import CLASSES, Facts
from weightclass.errors import UserError
from weightclass.judge import Judged, count
from weightclass.model import networks
from weightclass.modelfile import Classifier

FACTS = Facts(
    params=98_765,
    macs=12_300_000,
    accuracy=0.9123,
    interval=(0.9066, 0.9177),
    n=10_000,
    corrupted=0.6543,
    pflops=0.456,
    seconds=7200.0,
    computed_on="cpu, 2 threads, float32",
    command="weightclass train champion",
)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; the working directory is empty too."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(champions, "FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


def shipped(box: Path, name: str = "100k") -> Classifier:
    """A network that nobody has trained."""
    ours = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    network = networks.build(ours.model, (1, 8, 8), 10, seed=3).eval()
    facts = msgspec.to_builtins(FACTS) | {"fingerprint": "0123456789abcdef", "split": "test"}
    model = Classifier(network, ours, name, tuple("0123456789"), (1, 8, 8), (0.3,), (0.2,), facts)
    modelfile.save(box / f"{name}.safetensors", model, half=True)
    return model


def shown(narrow: bool = False) -> str:
    out = Console(file=io.StringIO(), width=80 if narrow else 120, color_system=None)
    out.print(champions.table(wc.models(), narrow))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


# --- what ships --------------------------------------------------------------------------------------------


def test_the_box_is_whole_and_small() -> None:
    """What is really there: every file loads, has its card, keeps its class, and all of them fit."""
    files = sorted(champions.FOLDER.glob("*"))
    assert sum(file.stat().st_size for file in files) <= champions.LIMIT
    there = [model for model in champions.models() if model.path]
    assert {file.name for file in files} == {f"{model.name}{end}" for model in there for end in (".safetensors", ".md")}
    for model in there:
        assert model.facts and model.facts.params <= CLASSES[model.name].params
        assert model.facts.accuracy >= CLASSES[model.name].least
        loaded = wc.load(model.name, "cpu")
        assert (loaded.name, loaded.classes[3]) == (model.name, "cat")
        assert sum(weight.numel() for weight in loaded.network.parameters()) == model.facts.params


def test_a_class_without_a_file_is_listed_as_missing(box: Path) -> None:
    assert [model.name for model in wc.models()] == list(CLASSES)
    assert all(model.path is model.facts is None and model.bytes == 0 for model in wc.models())
    assert shown().count("awaits") == shown(narrow=True).count("awaits") == len(CLASSES)
    for narrow in (False, True):
        assert max(map(len, shown(narrow).splitlines())) <= (80 if narrow else 120)


def test_what_is_there_is_listed_with_its_worth(box: Path) -> None:
    shipped(box)
    model = wc.models()[0]
    assert model == ("100k", CLASSES["100k"].published, box / "100k.safetensors", model.path.stat().st_size, FACTS)  # type: ignore[union-attr]
    [row] = [line for line in shown().splitlines() if "100k" in line]
    for told in ("98,765", "12.3 M", "91.23%", "90.66-91.77", "65.43%", "0.456", "94.4 %"):
        assert told in row
    assert "train champion" in shown() and "91.23%" in shown(narrow=True)


# --- names -------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.text() | st.sampled_from([f"./{name}" for name in CLASSES]))
def test_what_is_no_class_is_a_place(text: str) -> None:
    if text.lower() not in CLASSES:
        assert champions.find(text) is None
    assert champions.find(Path(text)) is None


@settings(max_examples=30)
@given(st.sampled_from(list(CLASSES)), st.lists(st.booleans(), min_size=9, max_size=9))
def test_names_are_found_in_any_case(name: str, upper: list[bool]) -> None:
    written = "".join(letter.upper() if up else letter for letter, up in zip(name, upper, strict=False))
    written += name[len(written) :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda self: True)
        assert champions.find(written) == champions.FOLDER / f"{name}.safetensors"


def test_a_name_loads_and_goes_before_a_folder(box: Path) -> None:
    model = shipped(box)
    pixels = torch.randint(0, 256, (9, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    for written in ("100k", "100K"):
        torch.testing.assert_close(wc.load(written).logits(pixels), model.logits(pixels), rtol=0.01, atol=0.01)
    assert wc.load("100k").path == box / "100k.safetensors"
    model.name = "mine"
    modelfile.save(Path("100k", modelfile.FILE_NAME), model)
    assert [wc.load(place).name for place in ("100k", "./100k", Path("100k"))] == ["100k", "mine", "mine"]


def test_what_is_not_trained_yet_is_one_line(box: Path) -> None:
    for there in ("none", "100k", "100k, sprint-94"):
        with pytest.raises(UserError) as caught:
            wc.load("5M")
        told = f"5M: not trained yet; there are: {there} (a file or folder of that name is ./5M)"
        assert str(caught.value) == told
        shipped(box, "sprint-94" if there == "100k" else "100k")


def test_a_near_name_is_no_place() -> None:
    with pytest.raises(UserError, match=r"5mm: no model.safetensors there; .* or a champion"):
        wc.load("5mm")


def test_a_damaged_file_is_one_line(box: Path) -> None:
    model = shipped(box)
    file = box / "100k.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"100k.safetensors: not a readable safetensors file") as caught:
        wc.load("100k")
    assert "\n" not in str(caught.value)
    for spoil in (
        lambda: None,
        lambda: save_file({"a": torch.ones(1)}, file),
        lambda: modelfile.save(file, Classifier(**(vars(model) | {"facts": {"n": "many"}}))),
    ):
        spoil()
        with pytest.raises(UserError, match=r"100k.safetensors: damaged \(.*\): install weightclass anew") as caught:
            wc.models()
        assert "\n" not in str(caught.value)


# --- what is made of one -----------------------------------------------------------------------------------


def test_nothing_is_written_beside_a_shipped_file(box: Path) -> None:
    shipped(box)
    model = wc.load("100k")
    assert model.home == wc.load("../weights/100k.safetensors").home == Path("runs", "100k")
    before = {path: path.read_bytes() for path in box.iterdir()}
    card = wc.evaluate("100k")
    assert card.n == 360
    count(model, Judged(None, "test"), "eval")  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in box.iterdir()} == before
    assert list(Path().iterdir()) == []


@pytest.mark.slow
def test_exports_go_to_a_folder_here_and_are_compared(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightclass.edge import bench

    pytest.importorskip("onnxscript")
    shipped(box)
    [handed] = wc.export("100k", ["onnx"])
    assert handed.path == Path("runs", "100k", "export", "100k.onnx")
    assert [path.name for path in box.iterdir()] == ["100k.safetensors"]
    assert bench.found(wc.load("100k")) == {"onnx": handed.path}
    assert wc.load(handed.path).home == wc.load("100k").home
