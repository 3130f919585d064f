"""What is handed over agrees with the network; what does not is caught, and rescued where that is possible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import weightclass as wc
from weightclass import modelfile, results
from weightclass.data.dataset import Dataset
from weightclass.edge import export as edge
from weightclass.edge.export import FORMATS, export, gather
from weightclass.edge.gate import GATES, Gate
from weightclass.edge.rungs import Rung
from weightclass.errors import UserError
from weightclass.judge import ALL, Judged
from weightclass.modelfile import Classifier


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on digits: two seconds."""
    settings = ("model.channels=8,16", "model.blocks=1,1", "train.epochs=6", "machine.threads=1")
    return wc.train("quickstart", *settings, out=tmp_path_factory.mktemp("runs"), quiet=True).folder


@pytest.fixture
def classifier(run: Path) -> Classifier:
    return modelfile.load(run, "cpu")


def with_a_huge_weight(classifier: Classifier, *outputs: int) -> Classifier:
    """Weights of a channel that is always 0 are huge: nothing changes in float, and their scale rounds others away."""
    network = classifier.network
    with torch.no_grad():
        network.get_parameter("bn1.weight")[3] = network.get_parameter("bn1.bias")[3] = 0
        weight = network.get_parameter("layer1.0.conv1.weight")
        for output in outputs:
            weight[output, 3] = 300 * weight[:, :3].abs().max()
    if len(outputs) == 1:
        weight.data[outputs[0], :3] = weight.data[outputs[0], 4:] = 0
    return classifier


def test_the_files_say_what_the_network_says(run: Path, classifier: Classifier, tmp_path: Path) -> None:
    before = results.readings(run)
    handed = export(run, ("onnx", "onnx-fp16", "onnx-int8"))
    assert [one.path for one in handed] == [
        run / "export" / f"quickstart{end}" for end in (".onnx", "-fp16.onnx", "-int8.onnx")
    ]
    assert results.readings(run) == before + 1  # for three files
    images = gather(classifier).judged.images
    for one in handed:
        loaded = wc.load(one.path)
        said = loaded.logits(images.images)
        assert (said.argmax(1) == classifier.logits(images.images).argmax(1)).double().mean() == one.judged.agreement
        assert (said.argmax(1) == images.labels).double().mean() == one.scorecard.accuracy
        assert (loaded.classes, loaded.mean, loaded.facts) == (classifier.classes, classifier.mean, classifier.facts)
        told = json.loads(loaded.network.runner.header["export"])  # type: ignore[union-attr]
        assert told["scorecard"]["accuracy"] == one.scorecard.accuracy
        assert one.bytes == one.path.stat().st_size
        text = (one.path.parent / f"{one.path.name}.md").read_text(encoding="utf-8")
        assert f"{one.scorecard.accuracy:.2%}" in text
        assert "weightclass" in text
    assert handed[1].bytes < handed[0].bytes
    assert sorted(path.name for path in (run / "export").iterdir() if not path.name.startswith(".lock")) == sorted(
        name for one in handed for name in (one.path.name, f"{one.path.name}.md")
    )


def test_collapse_under_one_scale_a_tensor_is_caught_and_rescued(classifier: Classifier, tmp_path: Path) -> None:
    said: list[str] = []
    broken = with_a_huge_weight(classifier, 2)
    [handed] = export(broken, ["onnx-int8"], tmp_path, first=Rung(per_channel=False), say=said.append)
    assert handed.setting == "a scale a channel"
    assert handed.gate.agreement >= GATES["int8"].agreement
    assert len(handed.refused) == len(said) - 1 == 1
    assert handed.refused[0].startswith("a scale a tensor: top-1 agreement")
    assert said[0].endswith("refused")
    assert said[1].startswith("onnx-int8, a scale a channel: ")


def test_what_no_scale_rescues_stays_in_float(classifier: Classifier, tmp_path: Path) -> None:
    broken = with_a_huge_weight(classifier, *range(8))
    [handed] = export(broken, ["onnx-int8"], tmp_path)
    assert handed.setting == "a scale a channel, 1 more layers in float"
    assert [line.split(": ")[0] for line in handed.refused] == ["a scale a channel", "a scale a channel, 7-bit weights"]
    assert handed.judged.agreement > 0.97


def test_nothing_is_left_of_a_file_that_does_not_agree(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impossible = Gate(agreement=1.0, accuracy_loss=0.0, difference=0.0)
    monkeypatch.setitem(GATES, "int8", impossible)
    with pytest.raises(UserError, match=r"^onnx-int8: nothing agrees with the network, last .*--agreement"):
        export(classifier, ["onnx-int8"], tmp_path)
    assert list(tmp_path.glob("*.onnx*")) == list(tmp_path.glob(".trial*")) == []


@pytest.mark.slow
def test_what_passed_beside_a_refusal_has_its_card_and_its_score(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GATES, "fp16", Gate(agreement=0.0, accuracy_loss=0.0, difference=0.0))
    with pytest.raises(
        UserError, match=r"^onnx-fp16: nothing agrees .* p99 .*; handed over in .*: onnx, onnx-int8$"
    ) as refused:
        export(classifier, ["onnx", "onnx-fp16", "onnx-int8"], tmp_path)
    assert "--agreement" not in str(refused.value)  # it would not help
    names = {f"quickstart{end}.onnx{card}" for end in ("", "-int8") for card in ("", ".md")}
    assert {path.name for path in tmp_path.glob("[!.]*")} == names
    header = wc.load(tmp_path / "quickstart.onnx").network.runner.header  # type: ignore[union-attr]
    assert "scorecard" in json.loads(header["export"])


@pytest.mark.slow
def test_an_export_that_is_ended_leaves_the_older_file_and_its_card(classifier: Classifier, tmp_path: Path) -> None:
    def ended(line: str) -> None:
        raise KeyboardInterrupt

    export(classifier, ["onnx"], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        export(classifier, ["onnx"], tmp_path, say=ended)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("n", "split"), [(2, "test"), (7, "test"), (700, "test"), (3, ALL), (8, ALL), (900, ALL)])
def test_a_few_images_are_shared_out(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, n: int, split: str
) -> None:
    pixels = torch.arange(2 * n)[:, None, None, None].expand(-1, 1, 8, 8)  # numbers that tell one image from another
    found = {
        "train": Dataset(pixels[:n], torch.zeros(n, dtype=torch.long), classifier.classes),
        "": Dataset(pixels[n * (split != ALL) :][:n], torch.zeros(n, dtype=torch.long), classifier.classes),
    }
    monkeypatch.setattr(edge.judge, "labelled", lambda model, which, *_: Judged(found[which], split))
    material = gather(classifier, "folder" if split == ALL else "")
    parts = [material.calibration, material.gate.images, material.judged.images.images]
    numbers = torch.cat([part[:, 0, 0, 0] for part in parts])
    assert all(map(len, parts))
    assert len(numbers) == len(numbers.unique()) == (n if split == ALL else 2 * n)
    assert len(parts[0]) <= 256
    assert (material.judged_on, material.judged.split) == ("other" if split == ALL else "test", split)
    with pytest.raises(UserError, match=r"quickstart: 1 image\(s\) are too few"):
        found |= {which: images.subset(torch.tensor([0])) for which, images in found.items()}
        gather(classifier)


def test_images_are_kept_apart(classifier: Classifier) -> None:
    found = gather(classifier)
    calibration, gate, test = (
        {image.numpy().tobytes() for image in images}
        for images in (found.calibration, found.gate.images, found.judged.images.images)
    )
    assert found.judged.split == "test"
    assert not gate & test
    assert not calibration & test
    assert len(calibration & gate) < 0.01 * len(gate)  # digits has a few pictures twice
    assert torch.equal(found.calibration, gather(classifier).calibration)


def test_held_out_images_are_gated_on_where_there_are_some(tmp_path: Path) -> None:
    settings = ("model.channels=4,8", "model.blocks=1,1", "train.epochs=1", "data.validation=100", "machine.threads=1")
    outcome = wc.train("quickstart", *settings, out=tmp_path, quiet=True)
    found = gather(wc.load(outcome.folder, "cpu"))
    assert found.gated_on == "validation images"
    assert len(found.gate) == 100


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        ([], "no format is named"),
        (["onyx"], r"format 'onyx': did you mean onnx"),
        (["onnx", "coreml"], r"format 'coreml'"),
    ],
)
def test_formats_that_do_not_exist(classifier: Classifier, tmp_path: Path, formats: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        export(classifier, formats, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_library_is_named_before_any_work(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(edge.util, "find_spec", lambda library: None)
    with pytest.raises(UserError, match=rf"^{name} needs \w+: pip install 'weightclass\[{FORMATS[name].module}\]'$"):
        export(classifier, [name], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_all_is_what_can_be_written_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WEIGHTCLASS_LITERT", raising=False)
    there = {"onnx", "onnxscript", "onnxruntime", "ai_edge_litert"}  # which runs .tflite files and writes none
    monkeypatch.setattr(edge.util, "find_spec", lambda library: library in there or None)
    assert edge.writable() == ["onnx", "onnx-fp16", "onnx-int8"]
    there.clear()
    with pytest.raises(UserError, match="onnx needs onnx"):
        edge.writable()


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.onnx.data", "b.xml", "b.bin", "b.onnx"):
        (tmp_path / name).write_bytes(bytes(10))
    assert [edge.size(tmp_path / name) for name in ("a.onnx", "b.xml", "b.onnx")] == [20, 20, 10]


def test_an_exported_file_is_not_exported_again(run: Path, tmp_path: Path) -> None:
    [handed] = export(run, ["onnx"], tmp_path)
    with pytest.raises(UserError, match="an exported file already"):
        export(handed.path, ["onnx"], tmp_path)
