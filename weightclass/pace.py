"""train.epochs = "fit": how many epochs this machine trains within a time limit, measured by training in earnest, from
a state that nobody keeps. The number stands in the run's decisions ever after."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from weightclass import ranks, recipe
from weightclass.config import joined
from weightclass.data.sources import Splits
from weightclass.device import Decisions
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.model.budget import Weights
from weightclass.recipe import Named
from weightclass.runlog import console, human_seconds
from weightclass.session import Observer, Session, decided
from weightclass.stopping import Stopper
from weightclass.trackers import Track
from weightclass.training.checkpoint import Keeper
from weightclass.training.distill import Distill
from weightclass.training.loop import State, fit

MARGIN = 0.06
"""Share of the time that is not planned for: no machine keeps its pace to the second."""


class Pace(NamedTuple):
    """What a machine needs for a recipe, in seconds, and how it was decided to compute."""

    speed: float
    """Images trained on a second, once it runs evenly."""
    epoch: float
    """One epoch, with its evaluation and its share of the checkpoints."""
    around: float
    """Until it runs evenly (building, compiling), and from the last step on (judging, pictures)."""
    decisions: Decisions

    def epochs(self, seconds: float) -> int:
        """The largest number that ends within `seconds`; at least 1, which may not."""
        return max(1, int((seconds * (1 - MARGIN) - self.around) / self.epoch))


def check(named: Named, folder: Path, stopper: Stopper) -> None:
    """Refuse to fit to nothing. A run that has decided needs no time limit any more."""
    if named.recipe.train.epochs == "fit" and not decided(folder) and stopper.deadline is None and not ranks.here.rank:
        raise UserError('train.epochs = "fit" needs a time to fit to: add --time-limit 30m, or name a number of epochs')


def fitted(
    named: Named, weights: Weights, splits: Splits, folder: Path, stopper: Stopper, quiet: bool
) -> tuple[Named, Decisions | None]:
    """`named` with a number for "fit": the one that stands in `folder`, or one measured now (by the clock of rank 0),
    with all else that was decided in measuring. Raises UserError where the recipe does not go with so few epochs."""
    if named.recipe.train.epochs != "fit":
        return named, None
    if earlier := decided(folder):
        return _settled(named, earlier.epochs), None
    seconds = math.inf if ranks.here.rank else min(max(0.05 * _left(stopper), 1.0), 4.0)
    pace, left = measure(named, weights, splits, folder / ".pace", seconds, stopper), _left(stopper)
    epochs, one = int(ranks.tell(lambda: str(pace.epochs(left)).encode())), pace.around + pace.epoch
    named = _settled(named, epochs)
    if not quiet:
        late = f" (one takes {human_seconds(one)}: the same command goes on as often as it takes)" * (one > left)
        told = f"{epochs} epoch{'s' * (epochs > 1)} in the {human_seconds(left)} left{late}"
        console().print(f"fit: {pace.speed:,.0f} img/s measured, {told}", markup=False)
    return named, structs.replace(pace.decisions, epochs=epochs)


def _left(stopper: Stopper) -> float:
    return max((stopper.deadline or 0.0) - time.monotonic(), 0.0)


def _settled(named: Named, epochs: int) -> Named:
    """With that number, and so with a command that gives the same run on any machine."""
    settings = structs.replace(named.recipe, train=structs.replace(named.recipe.train, epochs=epochs))
    recipe.check(settings, f"recipe {named.name}, fitted")
    return replace(named, recipe=settings, overrides=tuple(joined(named.overrides, [f"train.epochs={epochs}"])))


def measure(named: Named, weights: Weights, splits: Splits, folder: Path, seconds: float, stopper: Stopper) -> Pace:
    """Train for `seconds` at an even pace in `folder`, which goes again. Never looks at the test set."""
    began, whole = time.perf_counter(), named.recipe
    data, train = structs.replace(whole.data, watch_test=False), structs.replace(whole.train, epochs=100_000)
    distill = Distill() if whole.distill.cache else whole.distill  # a cache has no such epochs, and costs no time
    named = replace(named, recipe=structs.replace(whole, data=data, train=train, track=Track(), distill=distill))
    _remove(folder)  # a killed sitting's
    try:
        session = Session(named, weights, splits, folder, quiet=True)
        trial = _Trial(session, stopper, seconds)
        with contextlib.closing(session.meter):
            fit(session.state, session.plan, session.batches, session.keeper, trial)
        batch, speed, saving = train.batch_size, trial.speed, session.keeper.slowest
        images = min(session.plan.steps_per_epoch * batch, len(splits.train))
        judged = len(splits.validation or ()) + len(splits.test or ()) * whole.data.watch_test
        epoch = images / speed * (1 + saving / train.checkpoint_seconds) + judged * _judging(session)
        before = session.meter.started - began + trial.since - trial.before / speed
        after = session.plan.settling * batch / speed + saving + session.seconds_to_finish(speed)
        return Pace(speed, epoch, before + after, session.decisions)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    if not ranks.here.rank:  # the others wait for it to decide, before they look
        shutil.rmtree(folder, ignore_errors=True)


def _judging(session: Session) -> float:
    """Seconds an image, found on training images."""
    images = session.loader.dataset.images[: predict.BATCH_SIZE]
    for _ in range(2):  # the first time is slower
        started = time.perf_counter()
        predict.logits(session.network, images, session.pipeline.normalise).cpu()
    return (time.perf_counter() - started) / len(images)


class _Trial(Observer):
    """Stops after `seconds` at an even pace. The clock starts anew after a step of a size that was not seen twice
    before, for such a step compiles, or is run carefully."""

    def __init__(self, session: Session, stopper: Stopper, seconds: float) -> None:
        super().__init__(session, stopper)
        self.seconds, self.seen = seconds, Counter[int]()
        self.since, self.before, self.speed = 0.0, 0, 1.0

    def _trained(self) -> float:
        return self.session.meter.seconds - self.session.meter.paused

    def stepped(self, state: State, images: int, waited: float) -> None:
        super().stepped(state, images, waited)
        self.seen[images] += 1
        if self.seen[images] <= 2:
            state.sums.tolist()  # waits until the device has caught up
            self.since, self.before = self._trained(), self.session.meter.images

    def should_stop(self, keeper: Keeper) -> str | None:
        if self._trained() - self.since < self.seconds and not self.stopper.asked:
            return None
        self.session.state.sums.tolist()
        self.speed = max(self.session.meter.images - self.before, 1) / max(self._trained() - self.since, 1e-9)
        return "measured"
