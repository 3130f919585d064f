"""One run, from a recipe to a scored model. Read this file first: it is the story, the rest are its parts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch

from weightclass import __version__, config, device, modelfile, recipe, results
from weightclass.augment.pipeline import Pipeline
from weightclass.augment.pipeline import check as check_augment
from weightclass.data import sources
from weightclass.data.dataset import Dataset
from weightclass.data.loader import Loader
from weightclass.data.sources import Splits
from weightclass.evaluation import metrics, pictures, predict
from weightclass.evaluation.metrics import Scorecard
from weightclass.errors import UserError
from weightclass.files import atomic_write, run_lock
from weightclass.model import budget, resnet
from weightclass.model.budget import Weights
from weightclass.recipe import Named
from weightclass.results import Result
from weightclass.runlog import Meter, Metrics, console
from weightclass.stopping import Stopper
from weightclass.training import optim, schedule
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import Batch, Plan, State, fit


@dataclass(frozen=True)
class Outcome:
    """How `train` ended: with a result, or stopped early for a reason (then the same command goes on)."""

    folder: Path
    result: Result | None
    stopped: str | None = None


def train(
    name: str = "quickstart",
    *overrides: str,
    out: str | Path = "runs",
    time_limit: float | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train recipe `name` with `table.key=value` overrides; the same call continues a stopped run or reports a finished one.

    `out` holds the run folders; `time_limit` in seconds saves and returns in time. Raises UserError.
    """
    stopper = Stopper(time.monotonic() + time_limit if time_limit else None)
    named = recipe.load(name, *overrides)
    weights = weigh(name, *overrides)  # refused here if over budget, before data is touched
    with stopper:
        splits = sources.load(named.recipe.data)
        run = Run.open(named, weights, splits, Path(out), quiet)
        with run_lock(run.folder):
            if result := results.read(run.folder):
                Keeper(run.folder / "checkpoint").clear()  # a kill may have come between the result and this
                return run.report(result, "finished already")
            run.start()
            stopped = fit(run.state, run.plan, run.batches, run.keeper, run.watch(stopper))
            # A session that had nothing left to train finishes, or a short time limit would never see the end.
            if stopped := stopped or (run.meter.images and stopper.reason(run.seconds_to_finish())):
                return run.pause(stopped)
            return run.report(run.finish(), "done")


def weigh(name: str, *overrides: str) -> Weights:
    """Parameters, MACs, bytes and activations of a recipe's network. Raises UserError where it is over its budget."""
    named = recipe.load(name, *overrides)
    weights = recipe.weigh(named.recipe)
    budget.check(named.recipe.budget, weights)
    return weights


def evaluate(model: str | Path, split: str = "test", path: str = "") -> Scorecard:
    """Score a model file or run folder on a split of the data set it was trained on; counts test readings."""
    classifier = modelfile.load(model)
    tree = config.to_tree(classifier.recipe.data) | ({"path": path} if path else {})
    splits = sources.load(config.build(tree, sources.Data, f"{model}: data"))
    if split not in Splits.__dataclass_fields__:
        raise UserError(f"split {split!r}{config.near_miss(split, Splits.__dataclass_fields__)}")
    dataset: Dataset | None = getattr(splits, split)
    if dataset is None:
        raise UserError(f"{model}: its recipe holds no validation images out (data.validation = 0)")
    card = metrics.scorecard(classifier.logits(dataset.images), dataset.labels, classifier.classes)
    folder = classifier.path.parent if classifier.path else None
    if folder and split == "test" and (result := results.read(folder)):
        results.write(folder, msgspec.structs.replace(result, test_readings=result.test_readings + 1))
    return card


@dataclass
class Run:
    """Everything one run holds between its first line and its last."""

    named: Named
    weights: Weights
    splits: Splits
    folder: Path
    fingerprint: str
    quiet: bool

    @classmethod
    def open(cls, named: Named, weights: Weights, splits: Splits, out: Path, quiet: bool) -> Run:
        """Name the run folder by what can change its weights."""
        data = [splits.train, splits.test, *([splits.validation] if splits.validation else [])]
        mark = recipe.fingerprint(named.recipe, "".join(part.digest() for part in data))
        folder = out / f"{named.name}-{mark[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(named, weights, splits, folder, mark, quiet)

    def start(self) -> None:
        """Decide, build, and go back to the last checkpoint if there is one."""
        settings = self.named.recipe
        decisions = self._decisions()
        self.device = device.apply(decisions)
        data = self.splits.train.to(self.device)
        mean, std = (settings.augment.mean, settings.augment.std) if settings.augment.mean else data.mean_std()
        operations = check_augment(settings.augment, data.image_shape)
        self.pipeline = Pipeline(operations, mean, std, settings.train.seed, self.device)
        self.loader = Loader(data, settings.train.batch_size, settings.train.seed, settings.train.drop_last)
        self.plan = Plan(
            train=settings.train,
            steps_per_epoch=self.loader.steps,
            rate=self._rate,
            device=self.device,
            precision=decisions.precision,
            compile=decisions.compile,
        )
        self.state = self._fresh_state(data)
        self.metrics = Metrics(self.folder / "metrics.jsonl")
        self.keeper = Keeper(self.folder / "checkpoint", settings.train.checkpoint_seconds)
        resumed = self.keeper.load_latest(self.state)
        self.metrics.rewind(self.state.step)
        self.meter = Meter(self.plan.steps, self.state.step, settings.train.epochs, self.quiet)
        self._introduce(decisions, resumed)

    def _decisions(self) -> device.Decisions:
        path = self.folder / "environment.json"
        earlier = None
        if path.exists():
            earlier = msgspec.convert(json.loads(path.read_text(encoding="utf-8"))["decisions"], device.Decisions)
        decisions = device.decide(self.named.recipe.machine, earlier)
        if not earlier:
            facts = {"weightclass": __version__, **device.environment(), "decisions": msgspec.to_builtins(decisions)}
            atomic_write(self.folder / "recipe.toml", config.to_toml(self.named.recipe))
            atomic_write(path, json.dumps(facts, indent=2) + "\n")
        return decisions

    def _rate(self, step: int) -> float:
        settings = self.named.recipe
        return schedule.rate(
            settings.schedule, settings.optimizer.lr, step, self.loader.steps, settings.train.epochs
        )

    def _fresh_state(self, data: Dataset) -> State:
        settings = self.named.recipe
        seed = settings.train.seed
        model = resnet.build(settings.model, data.image_shape, len(data.classes), seed, self.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        resnet.group_norms(model, settings.train.bn_group)
        average = Average(model, settings.train.ema) if settings.train.ema else None
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.zeros(3, dtype=precise, device=self.device)
        return State(model, optim.build(settings.optimizer, model), average, sums=sums)

    def _introduce(self, decisions: device.Decisions, resumed: bool) -> None:
        for name in self.keeper.damaged:
            self.meter.say(f"checkpoint {name} is damaged and was left out; going on from the one before it")
        how = f"{decisions.device}, {decisions.threads} threads, {decisions.precision}"
        how += ", compiled" if decisions.compile else ""
        train, held = len(self.splits.train), len(self.splits.validation or ())
        self.meter.say(
            f"{self.named.name}: {self.weights.params:,} parameters, {self.weights.macs / 1e6:,.1f} M MACs, "
            f"{train:,} training images{f', {held:,} held out' if held else ''} ({how})"
        )
        if resumed:
            self.meter.say(f"continuing in {self.folder} at step {self.state.step:,} of {self.plan.steps:,}")

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """The batches of one epoch from step `first` on, augmented and normalised on the device."""
        for step, batch in enumerate(self.loader.epoch(epoch, first), epoch * self.loader.steps + first):
            pictures_seen = self.pipeline.augment(batch.images, step, batch.slots)
            yield replace(batch, images=self.pipeline.normalise(pictures_seen))

    def watch(self, stopper: Stopper) -> Observer:
        """The eyes of this run on its loop."""
        return Observer(self, stopper)

    def score(self, split: str) -> tuple[Scorecard, torch.Tensor]:
        """The scorecard of the (averaged) weights on a split, and its logits on the CPU."""
        data: Dataset = getattr(self.splits, split)
        images = data.images.to(self.device)
        logits = predict.logits(self.state.evaluated, images, self.pipeline.normalise).cpu()
        return metrics.scorecard(logits, data.labels, data.classes), logits

    @property
    def judged_on(self) -> str:
        """Validation where images are held out for it (development), else the test set (a frozen recipe)."""
        return "validation" if self.splits.validation else "test"

    def seconds_to_finish(self) -> float:
        """A guess, on the safe side, at the time that `finish` takes: a forward pass over the judged set, pictures."""
        return len(getattr(self.splits, self.judged_on)) / max(self.meter.speed, 1.0) + 5

    def pause(self, reason: str) -> Outcome:
        """Stopped early; the checkpoint is already written."""
        self.meter.close()
        self.meter.say(
            f"stopped ({reason}) at step {self.state.step:,} of {self.plan.steps:,}, saved in {self.folder}; "
            "the same command continues"
        )
        return Outcome(self.folder, None, reason)

    def finish(self) -> Result:
        """Score the final weights once, write model, pictures and, last, the result."""
        self.meter.close()
        card, logits = self.score(self.judged_on)
        result = self._result(card)
        size = modelfile.save(self.folder / modelfile.FILE_NAME, self._classifier(result))
        self._draw(card, logits)
        result = msgspec.structs.replace(result, model_bytes=size)
        results.write(self.folder, result)
        self.keeper.clear()
        return result

    def _classifier(self, result: Result) -> modelfile.Classifier:
        card = result.scorecard
        facts = {"version": __version__, "fingerprint": self.fingerprint, "split": result.split, "n": card.n}
        facts |= {"accuracy": card.accuracy, "interval": list(card.interval), "params": result.params}
        return modelfile.Classifier(
            network=self.state.evaluated,
            recipe=self.named.recipe,
            name=self.named.name,
            classes=self.splits.train.classes,
            image_shape=self.splits.train.image_shape,
            mean=self.pipeline.mean,
            std=self.pipeline.std,
            facts=facts,
        )

    def _result(self, card: Scorecard) -> Result:
        settings, steps = self.named.recipe.train, self.plan.steps
        images = min(steps * settings.batch_size, settings.epochs * len(self.splits.train))
        readings = settings.epochs if self.named.recipe.data.watch_test else 0
        seconds = self.state.seconds
        session = max(self.meter.seconds, 1e-9)
        return Result(
            name=self.named.name,
            command=recipe.reproduce(self.named),
            fingerprint=self.fingerprint,
            version=__version__,
            seed=settings.seed,
            split="validation" if self.splits.validation else "test",
            test_readings=readings + (self.judged_on == "test"),
            scorecard=card,
            averaged=self.state.average is not None,
            params=self.weights.params,
            macs=self.weights.macs,
            train_pflops=6 * self.weights.macs * images / 1e15,
            epochs=settings.epochs,
            seconds=seconds,
            images_per_second=images / max(seconds, 1e-9),
            waiting=self.meter.waited / session,
            saving=self.keeper.total / session,
            peak_memory=device.peak_memory(self.device),
            model_bytes=0,
        )

    def _draw(self, card: Scorecard, logits: torch.Tensor) -> None:
        """curves.png, confusion.png, mistakes.png and samples.png: what a person would rather look at than read."""
        headline = f"{self.named.name}: {card.accuracy:.2%} on {card.n:,} {self.judged_on} images"
        data: Dataset = getattr(self.splits, self.judged_on)
        pictures.curves(self.metrics.records, self.folder / "curves.png", headline)
        pictures.confusion(card, self.folder / "confusion.png", headline)
        confidence, best = logits.softmax(1).max(1)
        named = [data.classes[label] for label in data.labels.tolist()]
        said = [data.classes[label] for label in best.tolist()]
        pictures.mistakes(data.images, named, said, confidence, self.folder / "mistakes.png", f"mistakes of {headline}")
        first = next(self.loader.epoch(0))
        seen = self.pipeline.augment(first.images[:64], 0, first.slots[:64]).cpu()
        labels = [data.classes[label] for label in first.labels[:64].tolist()]
        pictures.samples(seen, labels, self.folder / "samples.png", f"what {self.named.name} sees in training")

    def report(self, result: Result, how: str) -> Outcome:
        """Print the final table."""
        if not self.quiet:
            out = console()
            out.print(f"\n{how}" if how == "done" else f"{self.folder}: {how}", markup=False)
            out.print(results.table(result, self.folder))
        return Outcome(self.folder, result)


class Observer:
    """What `fit` tells a run while it trains: meters, epoch records, reasons to stop."""

    def __init__(self, run: Run, stopper: Stopper) -> None:
        self.run, self.stopper = run, stopper
        self.before = run.state.seconds
        self.last = time.perf_counter()
        self.slowest_step = 0.0

    def stepped(self, state: State, images: int, waited: float) -> None:
        now = time.perf_counter()
        self.slowest_step = max(self.slowest_step, now - self.last)
        self.last = now
        self.run.meter.stepped(state.step, images, waited)
        state.seconds = self.before + self.run.meter.seconds

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        run, started = self.run, time.perf_counter()
        record: dict[str, object] = {"epoch": epoch, "step": state.step}
        record |= {"train_loss": means[0], "train_accuracy": means[1], "lr": rate}
        for split in ("validation", "test"):
            if split == "test" and not run.named.recipe.data.watch_test or getattr(run.splits, split) is None:
                continue
            card, _ = run.score(split)
            record |= {f"{split}_accuracy": card.accuracy, f"{split}_loss": card.nll}
        run.meter.paused += time.perf_counter() - started
        record["time"] = {"seconds": round(state.seconds, 2), "images_per_second": round(run.meter.speed, 1)}
        run.metrics.append(record)
        run.meter.epoch(record)
        self.last = time.perf_counter()

    def should_stop(self, keeper: Keeper) -> str | None:
        return self.stopper.reason(2 * self.slowest_step + 2 * keeper.slowest + 0.5)
