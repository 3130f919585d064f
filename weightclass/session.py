"""Everything a run holds while it trains: built from a recipe, and put back to where its folder says it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from weightclass import __version__, config, device, ranks, results
from weightclass.augment.pipeline import Pipeline
from weightclass.augment.pipeline import check as check_augment
from weightclass.batching import Batch
from weightclass.config import parse_quantity
from weightclass.data.dataset import Dataset
from weightclass.data.loader import Loader
from weightclass.data.sources import Splits
from weightclass.errors import UserError
from weightclass.evaluation import metrics, predict
from weightclass.evaluation.metrics import Scorecard
from weightclass.files import atomic_write
from weightclass.model import networks, padding
from weightclass.model.airbench import Airbench
from weightclass.model.budget import Weights
from weightclass.recipe import Named, Recipe
from weightclass.runlog import Meter, Metrics, human_bytes, left_out
from weightclass.stopping import Stopper
from weightclass.teachers import Teachers
from weightclass.trackers import Track, Trackers
from weightclass.training import optim, schedule
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.lookahead import Lookahead
from weightclass.training.loop import Plan, State


class Session:
    """One sitting of a run. A run that is killed and started again has several, and one outcome."""

    def __init__(
        self,
        named: Named,
        weights: Weights,
        splits: Splits,
        folder: Path,
        quiet: bool = False,
        decided: device.Decisions | None = None,
    ) -> None:
        self.named, self.recipe, self.weights, self.splits, self.folder = named, named.recipe, weights, splits, folder
        self.changed = ""
        taken = ranks.tell(lambda: msgspec.json.encode(self._decisions(decided)))
        self.decisions = decisions = msgspec.json.decode(taken, type=device.Decisions)
        self.device = device.apply(decisions)
        train = self._placed(splits.train)
        if decisions.compile:
            torch.compiler.reset()  # or a process's fifth recipe finds dynamo's cache full, and runs uncompiled
        compiled = decisions.compile and self.device.type != "cpu"  # which computes each image's own operation only
        self.pipeline = augmentation(self.recipe, train, self.device, compiled)
        self.augmenting = device.Stopwatch(self.device)
        settings = self.recipe.train
        size, seed, drop_last = settings.batch_size, settings.seed, settings.drop_last
        self.loader = Loader(train, size, seed, drop_last, self.device, settings.group)
        how = self.loader, self.pipeline, decisions.precision
        self.teachers = Teachers(self.recipe, splits.train, *how) if self.recipe.distill else None
        self.learned = self.recipe.distill.hashed()  # now: nobody may need the files any more when the run ends
        self.plan = Plan(
            train=settings,
            steps_per_epoch=self.loader.steps,
            rate=self._rate,
            device=self.device,
            precision=decisions.precision,
            compile=decisions.compile,
            graphs=decisions.graphs,
            micro_batch=decisions.micro_batch,
            distill=self.recipe.distill,
            recompute=decisions.recompute,
        )
        self._network = self.recipe.model, splits.train.image_shape, len(splits.train.classes)
        self.state = self._fresh_state(decisions.pad)
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.keeper = Keeper(folder / "checkpoint", settings.checkpoint_seconds)
        resumed = self.keeper.load_latest(self.state)
        if not ranks.here.rank:  # the others write nothing
            self.metrics.rewind(self.state.step)
        self.computed_on = f"{decisions.device}, {decisions.threads} threads, {decisions.precision}"
        self.computed_on += f", {ranks.here.size} ranks" if ranks.here.size > 1 else ""
        self.computed_on += (", compiled" if decisions.compile else "") + (", padded" if decisions.pad else "")
        self.meter = Meter(self.plan.steps, self.state.step, settings.length, quiet)
        self._introduce(resumed)
        told = config.to_tree(self.recipe)
        self.trackers = Trackers(
            Track() if ranks.here.rank else self.recipe.track, told, folder, self.metrics.records, self.meter
        )

    def _decisions(self, decided: device.Decisions | None) -> device.Decisions:
        """Taken at the run's first start (`decided`: shortly before), read from its folder ever after."""
        path, facts = self.folder / "environment.json", {"weightclass": __version__, **device.environment()}
        if path.exists():
            earlier, decisions = _earlier(path)
            earlier["ranks"], facts["ranks"] = decisions.ranks, ranks.here.size
            differ = [key for key in ("weightclass", "torch", "processor", "ranks") if earlier.get(key) != facts[key]]
            self.changed = ", ".join(f"{key} {earlier.get(key)} (now {facts[key]})" for key in differ)
            return device.decide(self.recipe.machine, decisions)
        decisions = decided or device.decide(self.recipe.machine)
        facts["decisions"] = msgspec.to_builtins(decisions)
        atomic_write(self.folder / "recipe.toml", config.to_toml(located(self.recipe)))
        if self.splits.left_out:
            atomic_write(self.folder / "left_out.txt", "\n".join(self.splits.left_out) + "\n")
        atomic_write(path, json.dumps(facts, indent=2) + "\n")
        return decisions

    def cut(self, plan: Plan) -> None:
        """Memory did not suffice: say so, and let later sittings of this run take the same cuts."""
        path = self.folder / "environment.json"
        facts, decisions = _earlier(path)
        cuts = {"micro_batch": plan.micro_batch, "recompute": plan.recompute}
        self.decisions = decisions = msgspec.structs.replace(decisions, **cuts)
        atomic_write(path, json.dumps(facts | {"decisions": msgspec.to_builtins(decisions)}, indent=2) + "\n")
        images = plan.micro_batch or plan.train.micro_batch or plan.train.batch_size
        twice = ", its blocks computed twice" if plan.recompute else ""
        self.meter.say(f"not enough memory: the same step goes on, {images:,} images at a time{twice}")

    def _placed(self, train: Dataset) -> Dataset:
        """On the device where it fits; else it stays where it is and is streamed, batch by batch the same."""
        room = parse_quantity(self.recipe.machine.memory) if self.recipe.machine.memory else device.room(self.device)
        return train.to(self.device) if train.images.nbytes <= room else train

    def _rate(self, step: int) -> float:
        lr, epochs = self.recipe.optimizer.lr, self.recipe.train.length
        return schedule.rate(self.recipe.schedule, lr, step, self.loader.steps, epochs)

    def _fresh_state(self, pad: bool) -> State:
        settings = self.recipe.train
        model = networks.build(*self._network, settings.seed, self.device)
        if isinstance(model, Airbench):
            model.acquaint(self._some_images())
        model = padding.padded(model, *self._network) if pad else model
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        networks.group_norms(model, settings.group)
        average = Average(model, settings.ema) if settings.ema else None
        lookahead = Lookahead(model, settings.lookahead, settings.lookahead_alpha) if settings.lookahead else None
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(3, dtype=precise, device=self.device)
        return State(model, optim.build(self.recipe.optimizer, model), average, lookahead, sums=sums)

    def _some_images(self, count: int = 5_000, piece: int = 250) -> Iterator[Tensor]:
        """About `count` normalised training images from all over the set, a piece at a time."""
        images = self.splits.train.images
        chosen = torch.arange(0, len(images), max(1, len(images) // count)).split(piece)
        yield from (self.pipeline.normalise(images[indices].to(self.device)) for indices in chosen)

    def _introduce(self, resumed: bool) -> None:
        for name in self.keeper.damaged:
            self.meter.say(f"checkpoint {name} is damaged and was set aside")
        if self.keeper.damaged and not resumed:
            self.meter.say("no sound checkpoint is left: starting again from step 0")
        if self.changed:
            self.meter.say(f"this run was started with {self.changed}: its last bits may come out differently")
        held = f", {len(self.splits.validation):,} held out" if self.splits.validation else ""
        self.meter.say(
            f"{self.named.name}: {self.weights.params:,} parameters, {self.weights.macs / 1e6:,.1f} M MACs, "
            f"{len(self.splits.train):,} training images{held} ({self.computed_on})"
        )
        for line in left_out(self.splits.left_out):
            self.meter.say(line)
        if self.loader.streams:
            size = human_bytes(self.splits.train.images.nbytes)
            self.meter.say(f"{size} of training images do not fit on the device (machine.memory): they are streamed")
        if resumed:
            self.meter.say(f"continuing in {self.folder} at step {self.state.step:,} of {self.plan.steps:,}")

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of one epoch from step `first` on, augmented, seen by teachers, and normalised on the device."""
        for step, batch in enumerate(self.loader.epoch(epoch, first), epoch * self.loader.steps + first):
            with self.augmenting.timing():
                batch = self.pipeline.augment(batch, epoch, step)
                teacher = self.teachers and self.teachers(batch, epoch, step)
                batch = replace(batch, images=self.pipeline.normalise(batch.images), teacher=teacher)
            yield batch

    @property
    def judged_on(self) -> str:
        """Validation where images are held out for it (development), else the test set (a frozen recipe)."""
        return "validation" if self.splits.validation else "test"

    def split(self, name: str) -> Dataset:
        """The images of `judged_on`, or of another split."""
        return getattr(self.splits, name)

    @property
    def network(self) -> nn.Module:
        """What is judged and shipped: the recipe's network with the (averaged) weights, however it is computed."""
        return padding.unpadded(self.state.evaluated, *self._network)

    def score(self, name: str) -> tuple[Scorecard, Tensor]:
        """The scorecard of the (averaged) weights on a split, and its logits on the CPU."""
        data = self.split(name)
        logits = predict.logits(self.network, data.images, self.pipeline.normalise).cpu()
        return metrics.scorecard(logits, data.labels, data.classes), logits

    def seconds_to_finish(self, speed: float = 0.0) -> float:
        """A guess, on the safe side, at a forward pass over the judged images plus the pictures; `speed`: images
        trained on a second, if not this sitting's."""
        return len(self.split(self.judged_on)) / max(speed or self.meter.speed, 1.0) + 5


def augmentation(recipe: Recipe, train: Dataset, device: torch.device, compiled: bool = False) -> Pipeline:
    """The recipe's augmentation and normalisation on `device`, measured on the training images unless it is given."""
    settings = recipe.augment
    mean, std = settings.mean, settings.std
    if not mean:
        mean, std = train.mean_std()
        std = tuple(max(value, 1 / 255) for value in std)  # a channel that is the same everywhere has none
    operations = check_augment(settings, train.image_shape)
    classes = len(train.classes)
    return Pipeline(operations, mean, std, recipe.train.seed, device, train.image_shape, classes, compiled)


def located(recipe: Recipe) -> Recipe:
    """With the whole paths of its data and teachers, for whoever comes from another folder."""
    data = recipe.data
    path = str(Path(data.path).expanduser().absolute()) if data.path else ""
    located = {"data": msgspec.structs.replace(data, path=path), "distill": recipe.distill.located()}
    return msgspec.structs.replace(recipe, **located)


def decided(folder: Path) -> device.Decisions | None:
    """What the run in `folder` decided at its first start; None where it has not come to that."""
    path = folder / "environment.json"
    told = ranks.tell(lambda: msgspec.json.encode(_earlier(path)[1]) if path.exists() else b"")
    return msgspec.json.decode(told, type=device.Decisions) if told else None


def _earlier(path: Path) -> tuple[dict[str, Any], device.Decisions]:
    """Where the run was started, and what was decided there."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts, msgspec.convert(facts["decisions"], device.Decisions)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); move the folder away to start anew") from None


Watch = Callable[[dict[str, Any]], str | None]
"""Told each epoch's record before it is saved; may answer why the training is to stop."""


class Observer:
    """What `fit` tells a session while it trains: meters, epoch records, reasons to stop."""

    def __init__(self, session: Session, stopper: Stopper, watch: Watch | None = None) -> None:
        self.session, self.stopper, self.cut, self.watch = session, stopper, session.cut, watch
        self.watched: str | None = None
        self.before = session.state.seconds
        self.evaluation: float | None = None  # seconds that the last one took
        self.last: float | None = None  # none before a session's first step, which may be a compilation
        self.slowest_step = 0.0

    def _watched(self) -> list[str]:
        wanted = {"validation": self.session.splits.validation is not None, "test": self.session.recipe.data.watch_test}
        return [name for name, watched in wanted.items() if watched]

    def stepped(self, state: State, images: int, waited: float) -> None:
        now = time.perf_counter()
        if self.last is not None:
            self.slowest_step = max(self.slowest_step, now - self.last)
        self.last = now
        meter = self.session.meter
        meter.stepped(state.step, images)
        called, augmented = self.session.augmenting.read()
        state.seconds = self.before + meter.seconds - meter.paused
        state.waited, state.augmented = state.waited + waited - called, state.augmented + augmented

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        session, started = self.session, time.perf_counter()
        if ranks.here.rank:  # rank 0 judges and tells
            return
        state.augmented += session.augmenting.read()[1]  # by now the device has done the epoch's last pieces
        record: dict[str, Any] = {"epoch": epoch, "step": state.step}
        record |= {"train_loss": means[0], "train_accuracy": means[1], "lr": rate}
        for split in self._watched():
            if split == "test":
                results.count_reading(session.folder, f"curve, epoch {epoch}")
            card, _ = session.score(split)
            record |= {f"{split}_accuracy": card.accuracy, f"{split}_loss": card.nll}
        self.evaluation = time.perf_counter() - started
        session.meter.paused += self.evaluation
        record["time"] = {"seconds": round(state.seconds, 2), "images_per_second": round(session.meter.speed, 1)}
        session.metrics.append(record)
        session.meter.epoch(record)
        session.trackers.epoch(record)
        self.watched = self.watch(record) if self.watch else None
        self.last = time.perf_counter()

    def should_stop(self, keeper: Keeper) -> str | None:
        """The next question comes after one more step, and an evaluation where that step ends an epoch."""
        session = self.session
        reserve = 2 * self.slowest_step + 2 * keeper.slowest + 1.0
        if (session.state.step + 1) % session.plan.steps_per_epoch == 0:
            reserve += self._next_evaluation()
        if session.state.step == session.plan.steps:
            reserve += session.plan.settling * session.plan.train.batch_size / max(session.meter.speed, 1.0)
        return self.watched or self.stopper.reason(reserve)

    def _next_evaluation(self) -> float:
        """Seconds, on the safe side; before there was one, as if the images were trained on, which is slower."""
        if self.evaluation is not None:
            return 1.5 * self.evaluation
        return sum(len(self.session.split(name)) for name in self._watched()) / max(self.session.meter.speed, 1.0)
