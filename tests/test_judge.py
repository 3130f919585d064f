"""A finished model on labelled pictures: which are judged, as which classes, and what is counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

import weightclass as wc
from weightclass import judge, recipe, results
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.evaluation import corruptions
from weightclass.evaluation.corruptions import corrupt
from weightclass.evaluation.robustness import Robustness
from weightclass.modelfile import Classifier

TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", "train.epochs=2"),
    *("machine.threads=1", "machine.precision=float32", "data.validation=100"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightclass.run.draw", lambda *_: None)
        return wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("runs"), quiet=True).folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 test digits as a folder of PNGs, class folders in an order of their own."""
    root, (_, test) = tmp_path_factory.mktemp("pictures"), sources.digits()
    for i in range(60):
        folder = root / test.classes[test.labels[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(test.images[i, 0].numpy()).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))


# --- labelled ----------------------------------------------------------------------------------------------


def test_the_splits_of_the_recipe(run: Path) -> None:
    assert [wc.evaluate(run, split).n for split in ("train", "validation")] == [130, 100]
    before = results.readings(run)
    assert wc.evaluate(run).n == wc.evaluate(wc.load(run), "test").n == 360
    assert results.readings(run) == before + 2


def test_another_folder_is_judged_whole(run: Path, digits: Path) -> None:
    _, test = sources.digits()
    model = wc.load(run)
    card = wc.evaluate(model, data=str(digits))
    right = (model.logits(test.images[:60]).argmax(1) == test.labels[:60]).sum()
    assert (card.n, card.correct) == (60, right)


def test_classes_are_matched_by_name(run: Path, digits: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for name in ("7", "2"):
        (some / name).mkdir(parents=True)
        for file in (digits / name).iterdir():
            (some / name / file.name).write_bytes(file.read_bytes())
    whole, part = (wc.evaluate(run, data=str(folder)) for folder in (digits, some))
    for name in ("2", "7"):
        assert part.per_class[name].recall == whole.per_class[name].recall
    (some / "2").rename(some / "two")
    with pytest.raises(UserError, match=r"class 'two' of the pictures is not one of the model's: choose from 0, 1, 2"):
        wc.evaluate(run, data=str(some))


def test_a_broken_picture_of_another_folder_is_named(run: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "copy")
    (tmp_path / "copy" / "1" / "zzz.png").write_bytes(b"")
    judged = judge.labelled(wc.load(run), data=str(tmp_path / "copy"))
    assert (len(judged.images), judged.split, judged.left_out) == (60, "all", ("1/zzz.png: empty file",))


def test_looking_at_another_folder_counts_as_a_reading(run: Path, digits: Path) -> None:
    before = results.readings(run)
    wc.evaluate(run, data=str(digits))
    assert results.readings(run) == before + 1


def test_pictures_that_have_changed_are_not_split_anew(tmp_path: Path, digits: Path) -> None:
    """Another file shifts the draw: what was trained on would be judged on."""
    shutil.copytree(digits, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightclass.run.draw", lambda *_: None)
        words = ("model.blocks=1,1", "model.channels=4,8", "augment.ops=flip", "train.epochs=1", "machine.threads=1")
        run = wc.train("folder", f"data.path={tmp_path / 'copy'}", *words, out=tmp_path, quiet=True).folder
    assert wc.evaluate(run).n == 12
    (tmp_path / "copy" / "0" / "more.png").write_bytes((tmp_path / "copy" / "1").glob("*.png").__next__().read_bytes())
    with pytest.raises(UserError, match="its pictures have changed since it was trained"):
        wc.evaluate(run)
    assert wc.evaluate(run, data=str(tmp_path / "copy")).n == 61


def test_a_published_model_takes_the_names_of_a_folder_but_not_for_good() -> None:
    settings = recipe.load("quickstart").recipe
    model = Classifier(torch.nn.Identity(), settings, "", ("a", "b"), (1, 8, 8), (0.5,), (0.5,), {"published": True})
    assert judge._matched(model, ("cat", "dog")) == ("cat", "dog")
    assert model.classes == ("a", "b")
    for others in (("a", "dog"), ("cat", "dog", "cow"), ("b", "a", "c")):
        with pytest.raises(UserError, match="of the pictures is not one of the model's"):
            judge._matched(model, others)


def test_views_are_reported_apart(run: Path, tmp_path: Path) -> None:
    model = wc.load(run)
    cards = judge.scorecards(model, judge.labelled(model, "validation"), views=True, save=tmp_path)
    assert list(cards) == [judge.PLAIN, "flip", "flip+shift"]
    assert cards[judge.PLAIN] == wc.evaluate(run, "validation")
    assert len({card.nll for card in cards.values()}) == 3
    assert {path.name for path in tmp_path.glob("*.png")} >= {"confusion.png", "reliability.png"}


def test_robustness_is_judged_image_by_image_within_the_look_at_the_clean_ones(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {kind: corruptions.KINDS[kind] for kind in ("glass_blur", "contrast")}
    monkeypatch.setattr("weightclass.judge.KINDS", kinds)
    model, before = wc.load(run), results.readings(run)
    judged = judge.labelled(model, "test")
    card, seen = judge.scorecards(model, judged)[judge.PLAIN], list[tuple[int, int]]()
    found = judge.robustness(model, judged, card, tmp_path, lambda *done: seen.append(done))
    assert results.readings(run) == before + 1
    assert seen[-1] == (3600, 3600) and (found.n, found.clean, found.split) == (360, card.accuracy, "test")
    _, test = sources.digits()
    logits = model.logits(torch.cat([corrupt(test.images[i : i + 1], "glass_blur", 4, first=i) for i in range(360)]))
    assert found.kinds["glass_blur"][3] == pytest.approx((logits.argmax(1) == test.labels).double().mean().item())
    assert found.mean == pytest.approx(sum(map(sum, found.kinds.values())) / 10)
    assert msgspec.json.decode((tmp_path / "robustness.json").read_bytes(), type=Robustness) == found
    assert (tmp_path / "robustness.png").is_file()
    monkeypatch.setattr("weightclass.judge.TOGETHER", 64 * 7)  # seven images at a time
    assert judge.robustness(model, judged, card).kinds == found.kinds


def test_images_of_another_shape_are_refused(run: Path) -> None:
    model = wc.load(run)
    model.image_shape = (1, 9, 9)
    with pytest.raises(UserError, match=r"has 10 classes and images of \[1, 9, 9\], digits has 10 and \[1, 8, 8\]"):
        wc.evaluate(model, "validation")
