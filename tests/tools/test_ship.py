"""A network is shipped as what its own file scores, and only where that is better than the file there."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

import weightclass as wc
from tools import ship
from weightclass import champions, judge, modelfile, recipe, results
from weightclass.champions import Weightclass
from weightclass.errors import UserError
from weightclass.model.norm import GroupBatchNorm2d

TINY = """base = "quickstart"
[model]
blocks = [1, 1]
channels = [4, 8]
[train]
epochs = 1
[machine]
threads = 1
precision = "float32"
"""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(frozen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its finished run on digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightclass.run.draw", lambda *_: None)
        return wc.train(str(frozen), out=tmp_path_factory.mktemp("runs"), quiet=True).folder


@pytest.fixture
def run(trained: Path, frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in a world of digits with an empty box, where that recipe ships with the package."""
    monkeypatch.setattr(champions, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr(recipe, "names", lambda: ["quickstart", str(frozen)])
    monkeypatch.setattr(ship, "SET", "digits")
    return shutil.copytree(trained, tmp_path / "runs" / trained.name)


def altered(run: Path, **changes: object) -> Path:
    """The run with another result."""
    found = results.read(run)
    assert found
    results.write(run, msgspec.structs.replace(found, **changes))
    return run


def test_the_file_tells_what_it_scores_itself(run: Path, frozen: Path) -> None:
    before, files = results.readings(run), set(run.iterdir())
    line = ship.ship(run, "100k")
    box = champions.FOLDER
    assert sorted(path.name for path in box.iterdir()) == ["100k.md", "100k.safetensors"]
    model, card, result = wc.load("100k"), wc.evaluate("100k", "test"), results.read(run)
    facts = champions.models()[0].facts
    assert facts and result and model.facts["fingerprint"] == result.fingerprint
    assert (facts.accuracy, facts.interval, facts.n) == (card.accuracy, tuple(card.interval), 360)
    assert (facts.params, facts.macs, facts.pflops) == (result.params, result.macs, result.train_pflops)
    assert (facts.seconds, facts.command) == (result.seconds, f"weightclass train {frozen}")
    found = judge.robustness(model, judge.labelled(model, "test"), card)
    assert facts.corrupted == found.mean and found.clean == card.accuracy
    assert results.readings(run) == result.test_readings == model.facts["test_readings"] == before + 1
    assert set(run.iterdir()) == files
    assert line == f"{box / '100k.safetensors'}: {(box / '100k.safetensors').stat().st_size / 1000:.3g} kB, " + (
        f"{card.accuracy:.2%} on 360 test images"
    )
    text = (box / "100k.md").read_text(encoding="utf-8")
    assert len(text.encode()) < ship.CARD
    fog = "| fog | " + " | ".join(f"{100 * share:.1f}" for share in found.kinds["fog"]) + " |"
    for told in (
        f"**{card.accuracy:.2%}** on 360 test",
        "94.4 %",
        f"`{facts.command}`",
        "[model]",
        "| 9 | 9 |",
        fog,
        f"**{facts.corrupted:.2%}** on average",
    ):
        assert told in text


def test_convolutions_are_halved_and_norms_kept(run: Path) -> None:
    ship.ship(run, "100k")
    own, shipped = load_file(run / modelfile.FILE_NAME), load_file(champions.FOLDER / "100k.safetensors")
    network = wc.load("100k").network
    norms = [name for name, module in network.named_modules() if isinstance(module, GroupBatchNorm2d)]
    assert len(norms) > 3
    for name, tensor in own.items():
        kept = name.rpartition(".")[0] in norms or tensor.ndim == 1
        assert torch.equal(shipped[name], tensor if kept else tensor.half())
    assert all(tensor.dtype != torch.float16 for tensor in network.state_dict().values())
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
    pixels = (torch.arange(6400).view(100, 1, 8, 8) * 37 % 256).to(torch.uint8)
    torch.testing.assert_close(wc.load("100k").logits(pixels), wc.load(run).logits(pixels), rtol=0.02, atol=0.02)


def with_interval(lo: float, hi: float) -> None:
    """Give the champion there another interval."""
    model = wc.load("100k")
    model.facts["interval"] = [lo, hi]
    modelfile.save(champions.FOLDER / "100k.safetensors", model, half=True)


def test_only_what_is_better_by_more_than_chance_replaces(run: Path) -> None:
    ship.ship(run, "100k")
    accuracy = wc.load("100k").facts["accuracy"]
    for top in (1.0, accuracy):
        with_interval(0.0, top)
        before = {path: path.read_bytes() for path in champions.FOLDER.iterdir()}
        with pytest.raises(UserError, match=rf"100k: {accuracy:.2%} is not above {top:.2%}, where the interval"):
            ship.ship(run, "100k")
        assert {path: path.read_bytes() for path in champions.FOLDER.iterdir()} == before
    with_interval(0.0, accuracy - 1e-6)
    ship.ship(run, "100k")
    assert wc.load("100k").facts["interval"][0] > 0


def test_a_sprint_is_won_by_compute(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(champions.CLASSES, "sprint-96", Weightclass(10**6, "-", "-", least=0.01))
    ship.ship(run, "sprint-96")
    before, found = results.readings(run), results.read(run)
    assert found
    for more in (1.0, 2.0):
        with pytest.raises(UserError, match="PFLOPs; the file there took"):
            ship.ship(altered(run, train_pflops=found.train_pflops * more), "sprint-96")
    assert results.readings(run) == before  # refused before the test set is read
    ship.ship(altered(run, train_pflops=found.train_pflops / 2), "sprint-96")
    monkeypatch.setitem(champions.CLASSES, "sprint-97", Weightclass(10**6, "-", "-", least=1.0))
    with pytest.raises(UserError, match=r"sprint-97: .* is below 100.00%: not shipped"):
        ship.ship(run, "sprint-97")


def refused(run: Path, message: str) -> None:
    before = results.readings(run)
    with pytest.raises(UserError, match=message) as caught:
        ship.ship(run, "100k")
    assert "\n" not in str(caught.value)
    assert results.readings(run) == before
    assert not champions.FOLDER.exists()


def test_a_run_that_may_not_compete(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ship, "LIMIT", ship.CARD)
    refused(run, r"100k: the box would hold [0-9,]+ bytes, 10,000 at most")
    monkeypatch.setattr(recipe, "names", lambda: ["quickstart"])
    refused(run, "tiny: no recipe of the package trains this run")
    refused(altered(run, params=100_001), "100,001 parameters are more than 100k's 100,000")
    refused(altered(run, split="validation"), "not trained on all of digits")
    monkeypatch.setattr(ship, "SET", "cifar10")
    refused(run, "not trained on all of cifar10")
    (run / results.FILE_NAME).unlink()
    refused(run, r"no result.json there: name a finished run's folder")


@pytest.mark.parametrize("key", ["validation", "subset"])
def test_a_run_on_fewer_images(run: Path, key: str) -> None:
    model = wc.load(run)
    data = msgspec.structs.replace(model.recipe.data, **{key: 200})
    model.recipe = msgspec.structs.replace(model.recipe, data=data)
    modelfile.save(run / modelfile.FILE_NAME, model)
    refused(run, "not trained on all of digits: leave out data.validation and data.subset")


def test_the_door(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ship", str(run), "100K"])
    ship.main()
    assert "100k.safetensors: " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: 100k: .* is not above"):
        ship.main()
    monkeypatch.setattr("sys.argv", ["ship", str(run), "101k"])
    with pytest.raises(SystemExit):
        ship.main()
    assert "invalid choice" in capsys.readouterr().err
