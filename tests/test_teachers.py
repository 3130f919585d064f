"""Teachers of tiny networks on digits: live and from a cache they say the same bits, and a student never notices."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import weightclass as wc
from tests.reference import plain_distill, tiny_run
from weightclass import cli, config, modelfile, recipe, run
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.model import networks
from weightclass.model.resnet import ResNetConfig
from weightclass.session import Observer, Session
from weightclass.stopping import Stopper
from weightclass.training.checkpoint import Keeper
from weightclass.training.distill import HEADER, page
from weightclass.training.loop import fit

EPOCHS = 2
TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", f"train.epochs={EPOCHS}"),
    *("machine.threads=1", "machine.precision=float32", "augment.ops=crop(1),mixup(0.4),cutout(2)", "train.ema=0.9"),
)
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module", autouse=True)
def digits_once() -> Iterator[None]:
    """Reading them takes longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "digits", functools.cache(sources.digits))
        yield


def saved(path: Path, seed: int, classes: tuple[str, ...] = DIGITS, shape: tuple[int, int, int] = (1, 8, 8)) -> Path:
    """A model file; its normalisation is its own."""
    settings = ResNetConfig(blocks=(1, 1), channels=(4, 8), pool="global")
    network = networks.build(settings, shape, len(classes), seed)
    network.get_parameter("linear.weight").data.mul_(20)
    whole = recipe.load("quickstart", *TINY).recipe
    mean, std = (0.1 + 0.2 * seed,) * shape[0], (0.5,) * shape[0]
    whole = config.build(config.to_tree(whole) | {"model": config.to_tree(settings)}, recipe.Recipe, "teacher")
    modelfile.save(path, modelfile.Classifier(network, whole, "teacher", classes, shape, mean, std, {}))
    return path


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One as a file, one as a run's folder."""
    folder = tmp_path_factory.mktemp("teachers")
    return [str(saved(folder / "one.safetensors", 1)), str(saved(folder / "run" / "model.safetensors", 2).parent)]


@pytest.fixture(scope="module")
def cache(teachers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    assert run.teach("quickstart", *TINY, by(teachers), out=folder) == (folder, None)
    return folder


def by(teachers: list[str]) -> str:
    return f"distill.teachers={','.join(teachers)}"


def sit(folder: Path, *overrides: str) -> Session:
    settings = {text.partition("=")[0]: text for text in (*TINY, *overrides)}
    named = recipe.load("quickstart", *settings.values())
    return Session(named, weights(), sources.load(named.recipe.data), folder, quiet=True)


@functools.cache
def weights() -> Any:
    """Which a session only tells."""
    return run.weigh("quickstart", *TINY)


class Stops(Observer):
    def __init__(self, session: Session, at: int) -> None:
        super().__init__(session, Stopper())
        self.at = at

    def should_stop(self, keeper: Keeper) -> str | None:
        return "asked" if self.session.state.step == self.at else None


def trained(folder: Path, *overrides: str, at: int = -1) -> dict[str, Any]:
    """Weights, their averages and the epochs' records at the end of a training, or where it was stopped."""
    session = sit(folder, *overrides)
    fit(session.state, session.plan, session.batches, session.keeper, Stops(session, at))
    state = session.state
    nets = {"model": state.model} | ({"average": state.average.twin} if state.average else {})
    tensors = {f"{part}/{name}": tensor for part, net in nets.items() for name, tensor in net.state_dict().items()}
    means = [record["train_loss"] for record in session.metrics.records]
    return tensors | {"losses": torch.tensor(means, dtype=torch.float64)}


def said(session: Session) -> torch.Tensor:
    batches = [batch for epoch in range(EPOCHS) for batch in session.batches(epoch, 0)]
    return torch.cat([batch.teacher for batch in batches if batch.teacher is not None])


# --- what they say -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_they_say_what_plain_networks_say_to_the_pictures_that_the_student_sees(
    tmp_path: Path, teachers: list[str], count: int
) -> None:
    session = sit(tmp_path, by(teachers[:count]))
    models = [modelfile.load(teacher, "cpu") for teacher in teachers[:count]]
    batch = next(session.batches(1, 2))
    assert batch.teacher is not None
    assert (batch.teacher.dtype, batch.teacher.amax(1).abs().max()) == (torch.float16, 0)
    mean, std = session.pipeline.mean[0], session.pipeline.std[0]
    pixels = ((batch.images * std + mean) * 255).round().to(torch.uint8)  # mixed, cropped and cut out
    plain = plain_distill.said([(each.network, each.mean, each.std) for each in models], pixels)
    torch.testing.assert_close(batch.teacher.float().log_softmax(1), plain, rtol=1e-3, atol=1e-2)
    assert plain.std(0).min() > 0.1  # they do say something


def test_two_are_the_mean_of_each(tmp_path: Path, teachers: list[str]) -> None:
    one, two, both = (
        said(sit(tmp_path / str(i), by(each))) for i, each in enumerate([teachers[:1], teachers[1:], teachers])
    )
    mean = (one.float() + two.float()) / 2
    torch.testing.assert_close(both.float(), mean - mean.amax(1, keepdim=True), rtol=2e-3, atol=2e-3)


def test_a_cache_says_the_same_bits(tmp_path: Path, teachers: list[str], cache: Path) -> None:
    live, cached = sit(tmp_path / "live", by(teachers)), sit(tmp_path / "cached", f"distill.cache={cache}")
    assert torch.equal(said(live), said(cached))
    for first in range(live.loader.steps):
        [*_, one], [*_, other] = live.batches(1, first), cached.batches(1, first)
        assert torch.equal(one.teacher, other.teacher)  # type: ignore[arg-type]
    assert sorted(path.name for path in cache.glob("*.npy")) == ["00000.npy", "00001.npy"]


def test_a_part_of_a_batch_gets_its_own(tmp_path: Path, cache: Path) -> None:
    """As a rank does."""
    session = sit(tmp_path, f"distill.cache={cache}")
    whole = list(session.loader.epoch(1))[1]
    part = replace(whole, images=whole.images[20:], slots=whole.slots[20:], total=50)
    assert session.teachers is not None
    mine, all_ = session.teachers(part, 1, 4), session.teachers(whole, 1, 4)
    assert mine is not None and all_ is not None
    assert torch.equal(mine, all_[20:])


# --- trainings ---------------------------------------------------------------------------------------------


def test_a_student_never_notices_the_cache(tmp_path: Path, teachers: list[str], cache: Path) -> None:
    live = trained(tmp_path / "live", by(teachers))
    assert not tiny_run.differing(trained(tmp_path / "cached", f"distill.cache={cache}"), live)
    half = shutil.copytree(cache, tmp_path / "half")
    page(half, 0).unlink()
    assert not tiny_run.differing(trained(tmp_path / "both", by(teachers), f"distill.cache={half}"), live)


@pytest.mark.parametrize("cached", [False, True])
def test_stopped_and_resumed_at_any_step_it_is_the_same_training(
    tmp_path: Path, teachers: list[str], cache: Path, cached: bool
) -> None:
    setting = f"distill.cache={cache}" if cached else by(teachers)
    whole = trained(tmp_path / "whole", setting)
    for at in (1, 4, -1):
        parts = trained(tmp_path / "parts", setting, at=at)
    assert not tiny_run.differing(parts, whole)


@pytest.mark.slow
def test_with_sam_lookahead_settles_on_pictures_that_no_cache_has(
    tmp_path: Path, teachers: list[str], cache: Path
) -> None:
    settings = ("train.ema=0", "train.lookahead=3", "train.sam=0.05")
    live = trained(tmp_path / "live", by(teachers), *settings)
    assert not tiny_run.differing(trained(tmp_path / "cached", f"distill.cache={cache}", *settings), live)


def test_a_whole_run_tells_its_teachers_and_no_place(
    tmp_path: Path, teachers: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightclass.run.draw", lambda *_: None)
    monkeypatch.chdir(cache.parent)
    outcome = wc.train("quickstart", *TINY, f"distill.cache={cache.name}", out=tmp_path, quiet=True)
    with safe_open(outcome.folder / "model.safetensors", "pt") as file:
        header = file.metadata()
    assert str(cache) not in str(header) and cache.name not in str(header) and "teachers = [\n" in header["recipe"]
    told = modelfile.load(outcome.folder, "cpu").recipe.distill
    hashes = tuple(json.loads((cache / HEADER).read_text(encoding="utf-8"))["teachers"])
    assert (told.teachers, told.weight, told.cache) == (hashes, 0.9, "")
    monkeypatch.chdir(tmp_path)
    again = wc.train(str(outcome.folder / "recipe.toml"), out=tmp_path, quiet=True)  # runs from any folder: is this run
    live = wc.train("quickstart", *TINY, by(teachers), out=tmp_path, quiet=True)  # so it is with the teachers' files
    assert again.folder == live.folder == outcome.folder


# --- writing a cache ---------------------------------------------------------------------------------------


def test_a_cache_is_written_epoch_by_epoch_in_as_many_sittings_as_it_takes(
    tmp_path: Path, teachers: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([None, "time limit", None, None, None, None, "SIGTERM", None, None, None])
    monkeypatch.setattr(Stopper, "reason", lambda *_: next(asked))
    with pytest.raises(UserError, match="before an epoch was written: give teach a longer one"):
        run.teach("quickstart", *TINY, by(teachers), f"distill.cache={tmp_path}")
    written = []
    for _ in range(3):
        folder, stopped = run.teach("quickstart", *TINY, by(teachers), f"distill.cache={tmp_path}")
        written.append((stopped, len(list(folder.glob("*.npy")))))
    assert written == [("SIGTERM", 1), (None, 2), (None, 2)]
    assert all((tmp_path / file.name).read_bytes() == file.read_bytes() for file in cache.glob("[0-9l]*"))


def test_a_longer_training_goes_on_with_a_shorter_ones_cache(
    tmp_path: Path, teachers: list[str], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    before = page(tmp_path, 0).stat().st_mtime_ns
    words = [by(teachers), "train.epochs=3", "distill.weight=0.5", "distill.temperature=1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["teach", *(text for text in TINY if "epochs" not in text), *words])
    assert not ended.value.code
    assert capsys.readouterr().out.endswith(": all epochs are there\n")
    assert (len(list(tmp_path.glob("*.npy"))), page(tmp_path, 0).stat().st_mtime_ns) == (3, before)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "differs"),
    [
        ("train.seed=1", "seed"),
        ("train.batch_size=40", "batch_size"),
        ("train.drop_last=true", "drop_last"),
        ("data.subset=120", "data and augmentation"),  # whose mean colour is measured
        ("augment.ops=crop(1)", "augmentation"),
    ],
)
def test_a_cache_of_other_pictures(
    tmp_path: Path, teachers: list[str], cache: Path, setting: str, differs: str
) -> None:
    message = rf"^{cache}: its logits are of another {differs}: name another folder$"
    with pytest.raises(UserError, match=message):
        sit(tmp_path, setting, f"distill.cache={cache}")
    words = {text.partition("=")[0]: text for text in (*TINY, setting, by(teachers))}.values()
    with pytest.raises(UserError, match=message):
        run.teach("quickstart", *words, out=cache)


@pytest.mark.parametrize("which", [slice(1), slice(None, None, -1)])
def test_a_cache_of_other_teachers(tmp_path: Path, teachers: list[str], cache: Path, which: slice) -> None:
    with pytest.raises(UserError, match="its logits are of another teachers"):
        sit(tmp_path, by(teachers[which]), f"distill.cache={cache}")


def test_an_epoch_that_nobody_can_tell(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 3 epochs: name the teachers, or `weightclass teach` on"):
        sit(tmp_path, f"distill.cache={cache}", "train.epochs=5")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04", None])
def test_a_damaged_epoch(tmp_path: Path, cache: Path, content: bytes | None) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    file = page(tmp_path / "cache", 0)
    file.write_bytes(file.read_bytes()[:-20] if content is None else content)
    session = sit(tmp_path / "run", f"distill.cache={tmp_path / 'cache'}")
    with pytest.raises(UserError, match=r"00000.npy: damaged \(.*\): remove it and `weightclass teach` anew"):
        next(session.batches(0, 0))


def test_teachers_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path("large.safetensors"), 1, shape=(1, 9, 9))
    saved(Path("letters.safetensors"), 1, tuple("abcdefghij"))
    for name in ("large", "letters"):
        with pytest.raises(UserError, match=rf"{name}.safetensors knows images of another shape, or other classes"):
            sit(tmp_path / name, f"distill.teachers={name}.safetensors")
    Path("broken.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"broken.safetensors: not a readable safetensors file"):
        sit(tmp_path / "broken", "distill.teachers=broken.safetensors")
    with pytest.raises(UserError, match=r"distill.teachers: nobody: no trained model there"):
        sit(tmp_path / "nobody", "distill.teachers=nobody")


@pytest.mark.parametrize("words", [("distill.teachers=a",), ("distill.cache=a",), ()])
def test_teach_wants_teachers_and_a_place(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="teach needs teachers and a place"):
        run.teach("quickstart", *words)
