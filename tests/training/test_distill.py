"""[distill]: what it refuses, teachers known by the hash of their files, and steps of the loop with a teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.reference import plain_steps, tiny_run
from weightclass import champions, config, recipe
from weightclass.errors import UserError
from weightclass.recipe import Recipe
from weightclass.training import optim
from weightclass.training.distill import HEADER, Distill, read
from weightclass.training.loop import Train, training_step


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """one.safetensors, run/model.safetensors, and a cache of both."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("cache").mkdir()
    Path("one.safetensors").write_bytes(b"one")
    Path("run", "model.safetensors").write_bytes(b"two")
    Path("cache", HEADER).write_text(f'{{"teachers": ["{ONE}", "{TWO}"]}}', encoding="utf-8")


ONE, TWO = "sha256:7692c3ad3540bb80", "sha256:3fc4ccfe745870e2"  # as sha256sum has them


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["temperature=2", "weight=0.5"])
def test_a_setting_without_teachers_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=r"\[distill\] temperature and weight are nothing without teachers"):
        recipe.load("quickstart", f"distill.{setting}")
    assert recipe.load("quickstart", f"distill.{setting}", "distill.teachers=one.safetensors").recipe.distill


@pytest.mark.parametrize("setting", ["temperature=0", "weight=1.5", "weight=-1", "teacher=one"])
def test_a_setting_out_of_range(setting: str) -> None:
    with pytest.raises(UserError, match=r"distill\.(temperature = 0|weight = |teacher: did you mean teachers)"):
        recipe.load("quickstart", "distill.teachers=one", f"distill.{setting}")


def test_teachers_go_by_what_their_files_hold() -> None:
    assert Distill(teachers=("one.safetensors", "run")).digests() == [ONE, TWO]
    Path("elsewhere").mkdir()
    Path("one.safetensors").rename("elsewhere/model.safetensors")
    assert Distill(teachers=("elsewhere", "run/model.safetensors")).digests() == [ONE, TWO]
    Path("elsewhere", "model.safetensors").write_bytes(b"two")
    os.utime("elsewhere/model.safetensors", ns=(1, 1))
    assert Distill(teachers=("elsewhere",)).digests() == [TWO]


def test_a_champion_teaches_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champions, "FOLDER", tmp_path / "run")
    Path("run", "5m.safetensors").write_bytes(b"one")
    told = Distill(teachers=("5M", "one.safetensors"))
    assert told.digests() == [ONE, ONE] and told.located().teachers[0] == "5M"
    with pytest.raises(UserError, match=r"100k: not trained yet; there are: 5m"):
        Distill(teachers=("100k",)).digests()


def test_a_cache_tells_of_teachers_that_are_not_there() -> None:
    Path("run", "model.safetensors").unlink()
    for teachers in ((), ("one.safetensors", "run"), ("gone", "run"), (ONE, TWO)):
        assert Distill(teachers=teachers, cache="cache").digests() == [ONE, TWO]
    with pytest.raises(UserError, match=r"^distill.teachers: run: no trained model there$"):
        Distill(teachers=("one.safetensors", "run")).digests()
    with pytest.raises(UserError, match=r"^distill.teachers: run: no trained model there$"):
        Distill(teachers=("run",), cache="cache").digests()  # of two


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cache: no logits there: `weightclass teach`"),
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b'{"teachers": null}', "damaged"),
        (b"\xff", "damaged"),
    ],
)
def test_a_cache_that_cannot_be_read(content: bytes | None, message: str) -> None:
    if content is None:
        Path("cache", HEADER).unlink()
    else:
        Path("cache", HEADER).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read("cache")
    assert "\n" not in str(error.value)


def test_places_come_whole() -> None:
    settings = Distill(teachers=("one.safetensors", ONE, "~/a"), cache="cache")
    here, home = Path.cwd(), Path.home()
    whole = Distill(teachers=(str(here / "one.safetensors"), ONE, str(home / "a")), cache=str(here / "cache"))
    assert settings.located() == whole
    assert Distill().located() == Distill()


def test_the_fingerprint_hangs_on_teachers_not_on_places() -> None:
    plain = recipe.load("quickstart").recipe

    def fingerprint(**distill: object) -> str:
        tree = config.to_tree(plain) | {"distill": distill}
        return recipe.fingerprint(config.build(tree, Recipe, "recipe"), "data")

    one = fingerprint(teachers=["one.safetensors"])
    assert fingerprint(teachers=[str(Path("one.safetensors").absolute())]) == one == fingerprint(teachers=[ONE])
    both = fingerprint(teachers=["one.safetensors", "run"])
    assert fingerprint(cache="cache") == fingerprint(teachers=["gone", "run"], cache="cache") == both
    others = [{"teachers": ["run"]}, {"teachers": [ONE], "weight": 0.5}, {"teachers": [ONE], "temperature": 1.0}]
    assert len({one, both, fingerprint(), *(fingerprint(**other) for other in others)}) == 6
    untaught = config.to_tree(plain)
    del untaught["distill"]  # as before there was such a table
    assert fingerprint() == recipe.fingerprint(config.build(untaught, Recipe, "recipe"), "data")
    assert config.fingerprint(plain, "data") == fingerprint()


# --- steps -------------------------------------------------------------------------------------------------


@dataclass
class Taught(tiny_run.Run):
    """With a made-up teacher."""

    settings: Distill = Distill(teachers=("somebody",))  # noqa: RUF009

    def __post_init__(self) -> None:
        super().__post_init__()
        self.plan = replace(self.plan, distill=self.settings)

    def batches(self, epoch: int, first: int = 0) -> Iterator[tiny_run.Batch]:
        for batch in super().batches(epoch, first):
            yield replace(batch, teacher=3 * torch.sin(batch.images[:, 0, :5].sum(2)))

    def step(self, count: int = 1) -> Taught:
        self.state.model.train()
        for batch in list(self.batches(0))[:count]:
            training_step(self.state, self.plan, batch, self.state.model)
        return self


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_steps_equal_those_on_the_teachers_answers_as_labels(rho: float) -> None:
    """At T = 1, weight 1 the gradient is that of cross-entropy with soft labels; under SAM, of both passes."""
    alone = Distill(teachers=("somebody",), temperature=1.0, weight=1.0)
    run = Taught(Train(batch_size=20, sam=rho), optim.SGD(momentum=0, weight_decay=0), settings=alone)
    twin = tiny_run.model()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin.train()
    for batch in run.batches(0):
        assert batch.teacher is not None
        plain_steps.sam_step(twin, batch.images, F.softmax(batch.teacher, 1), optimizer, rho)
    run.step(2)
    for mine, theirs in zip(run.state.model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_micro_batches_change_nothing() -> None:
    whole = Taught(Train(batch_size=20, bn_group=5)).step(2).tensors()
    cut = Taught(Train(batch_size=20, bn_group=5, micro_batch=10)).step(2).tensors()
    untaught = tiny_run.Run(Train(batch_size=20, bn_group=5))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, rtol=1e-10, atol=1e-12)
    for batch in untaught.batches(0):
        training_step(untaught.state, untaught.plan, batch, untaught.state.model.train())
    assert tiny_run.differing(whole, untaught.tensors())


def test_a_weight_of_nothing_trains_as_without_a_teacher_bit_for_bit(tmp_path: Path) -> None:
    settings = Train(batch_size=16, epochs=2, label_smoothing=0.1, ema=0.9)
    taught, plain = Taught(settings, settings=Distill(teachers=("a",), weight=0.0)), tiny_run.Run(settings)
    for run in (taught, plain):
        assert run.fit(tmp_path / type(run).__name__) is None
    assert not tiny_run.differing(taught.tensors(), plain.tensors())


def test_the_recorded_loss_is_the_one_that_is_minimised() -> None:
    run = Taught(Train(batch_size=20), settings=Distill(teachers=("a",), temperature=2.0, weight=0.25))
    batch = next(run.batches(0))
    assert batch.teacher is not None
    with torch.no_grad():
        logits = tiny_run.model().train()(batch.images)
        apart = F.kl_div((logits / 2).log_softmax(1), (batch.teacher / 2).softmax(1), reduction="batchmean")
        loss = 0.75 * F.cross_entropy(logits, batch.labels) + 0.25 * 4 * apart
    run.step()
    assert run.state.sums[0].item() / 20 == pytest.approx(loss.item(), rel=1e-10)
