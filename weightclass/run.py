"""One run, from a recipe to a scored model. Read this file first: it is the story, the rest are its parts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from msgspec import structs
from torch import Tensor

from weightclass import __version__, device, judge, modelfile, pace, ranks, recipe, results, trackers
from weightclass.augment.pipeline import Pipeline
from weightclass.data import sources
from weightclass.data.loader import Loader
from weightclass.data.sources import Found
from weightclass.errors import UserError
from weightclass.evaluation import charts, grids
from weightclass.evaluation.metrics import Scorecard
from weightclass.files import check_writable, run_lock, safe_name
from weightclass.model import budget
from weightclass.model.budget import Weights
from weightclass.recipe import Named
from weightclass.results import Result
from weightclass.runlog import console, working
from weightclass.session import Observer, Session, Watch, augmentation
from weightclass.stopping import EXIT_CODES, Stopper
from weightclass.teachers import Teachers
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import fit


@dataclass(frozen=True)
class Outcome:
    """How `train` ended: with a result, or stopped early for a reason (then the same command goes on)."""

    folder: Path
    result: Result | None
    stopped: str | None = None
    fresh: bool = False
    """Whether the run came to its end just now, rather than in an earlier call."""


def train(
    name: str = "",
    *overrides: str,
    data: str = "",
    budget: int | str = "",
    out: str | Path = "runs",
    time_limit: float | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train recipe `name` with `table.key=value` overrides. `data` is a folder of pictures, or a set's name; `budget`
    has a network picked with fewer parameters. Without any of them: quickstart.

    The same call continues a stopped run, or reports a finished one. `out` holds the run folders; `time_limit` in
    seconds saves and returns in time. Under torchrun, all ranks share the one run. Raises UserError.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    with ranks.joined():
        named = recipe.tailored(name, *overrides, data=data, budget=budget)
        quiet = quiet or ranks.here.rank > 0
        outcome = carry_out(named, out, Stopper(None if ranks.here.rank else deadline), quiet)
    if outcome.result and not quiet:
        report(outcome.folder, outcome.result, "done" if outcome.fresh else "finished already")
    return outcome


def carry_out(
    named: Named, out: str | Path, stopper: Stopper, quiet: bool = False, watch: Watch | None = None
) -> Outcome:
    """Train a recipe to its end, or until `stopper` or `watch` has a reason, from wherever its folder says it is."""
    trackers.check(named.recipe.track)
    found = sources.find(named.recipe.data)
    weights = _weighed(named, found)  # over budget is refused here, before any pixel is read
    with working("decoding", quiet) as progress:
        splits = ranks.in_turn(lambda: found.load(progress))
    fingerprint = recipe.fingerprint(named.recipe, splits.digest())
    if fingerprint != ranks.tell(fingerprint.encode).decode():
        raise UserError("the recipe or the pictures here are not those of rank 0: copy them from there")
    folder = folder_of(named, fingerprint, out)
    pace.check(named, folder, stopper)
    with contextlib.nullcontext() if ranks.here.rank else run_lock(folder), stopper:
        if result := _told(lambda: results.read(folder)):
            Keeper(folder / "checkpoint").clear()  # a kill may have come between the result and this
            return Outcome(folder, result)
        named, decided = pace.fitted(named, weights, splits, folder, stopper, quiet)
        if decided and (asked := ranks.agree(stopper.asked)):  # while it measured
            return Outcome(folder, None, asked)
        session = Session(named, weights, splits, folder, quiet, decided)
        with contextlib.closing(session.meter):
            observer = Observer(session, stopper, watch)
            stopped = fit(session.state, session.plan, session.batches, session.keeper, observer)
        # A session that had nothing left to train finishes, or a short time limit would never see the end.
        late = lambda: ranks.agree(stopper.reason(session.seconds_to_finish()))  # noqa: E731
        if stopped := stopped or (session.meter.images and late()):
            return pause(session, stopped)
        result = _told(lambda: finish(session, fingerprint, pictures=watch is None))
        return Outcome(folder, result, fresh=True)


def _told(find: Callable[[], Result | None]) -> Result | None:
    """What rank 0 finds, on every rank."""
    return msgspec.json.decode(ranks.tell(lambda: msgspec.json.encode(find())), type=Result | None)


def folder_of(named: Named, fingerprint: str, out: str | Path = "runs") -> Path:
    """Where a run lies: its recipe's name, and the head of what can change its weights. Where a recipe of another name
    came to the same settings, its run is this run."""
    own = Path(out) / f"{safe_name(named.name)}-{fingerprint[:8]}"
    return own if own.exists() else min(own.parent.glob(f"*-{fingerprint[:8]}"), default=own)


def weigh(name: str, *overrides: str) -> Weights:
    """Parameters, MACs, bytes and activations of a recipe's network. Raises UserError where it is over its budget."""
    named = recipe.load(name, *overrides)
    return _weighed(named, sources.find(named.recipe.data))


def samples(
    name: str = "quickstart", *overrides: str, path: str | Path = "samples.png", images: int = 8, draws: int = 7
) -> None:
    """Draw a contact sheet for recipe `name`: training images as they are, then as `draws` epochs would show them.

    Its rows are up to `images` of the run's first batch, of as many classes as can be. Nothing is trained, and nothing
    written but the picture at `path`. Raises UserError.
    """
    check_writable(path)
    named = recipe.load(name, *overrides)
    found = sources.find(named.recipe.data)
    recipe.weigh(named.recipe, found)  # what does not go with the images is refused before they are decoded
    with working("decoding") as progress:
        data = found.load(progress).train
    settings, pipeline = named.recipe.train, augmentation(named.recipe, data, torch.device("cpu"))
    loader = Loader(data, settings.batch_size, settings.seed, settings.drop_last)
    _contact_sheet(named, pipeline, loader, path, images, draws)


def teach(
    name: str = "quickstart", *overrides: str, out: str | Path = "", time_limit: float | None = None
) -> tuple[Path, str | None]:
    """Write what recipe `name`'s teachers say to each picture of its training to `out` (distill.cache, if left out) for
    all students that are shown the same; the same call goes on. The folder; why it stopped early. Raises UserError."""
    deadline = None if time_limit is None else time.monotonic() + time_limit
    whole = recipe.load(name, *overrides).recipe
    settings, folder = whole.train, out or whole.distill.cache
    if not whole.distill.teachers or not folder:
        raise UserError("teach needs teachers and a place for what they say: distill.teachers=RUN --out FOLDER")
    whole = structs.replace(whole, distill=structs.replace(whole.distill, cache=""))
    with working("decoding") as progress:
        train = sources.load(whole.data, progress).train
    decisions, folder = device.decide(whole.machine), Path(folder).expanduser()
    pipeline = augmentation(whole, train, device.apply(decisions))
    loader = Loader(train, settings.batch_size, settings.seed, settings.drop_last, pipeline.device)
    teachers = Teachers(whole, train, loader, pipeline, decisions.precision)
    with run_lock(folder), Stopper(deadline) as stopper, working("epochs") as progress:
        return folder, teachers.write(folder, pipeline, stopper, progress)


def _weighed(named: Named, found: Found) -> Weights:
    weights = recipe.weigh(named.recipe, found)
    budget.check(named.recipe.budget, weights, named.recipe.model.cure)
    return weights


# --- how a run ends ----------------------------------------------------------------------------------------


def pause(session: Session, reason: str) -> Outcome:
    """Stopped early, the checkpoint already written: say how to go on, unless a watcher wanted it so."""
    if reason in EXIT_CODES:
        session.meter.say(
            f"stopped ({reason}) at step {session.state.step:,} of {session.plan.steps:,}, saved in {session.folder}; "
            "the same command continues"
        )
    return Outcome(session.folder, None, reason)


def finish(session: Session, fingerprint: str, pictures: bool = True) -> Result:
    """Read the judged images once, with the final weights; write model, pictures and, last of all, the result."""
    if session.judged_on == "test":
        results.count_reading(session.folder, "result")
    card, logits = session.score(session.judged_on)
    size = modelfile.save(session.folder / modelfile.FILE_NAME, _classifier(session, card, fingerprint))
    if pictures:
        draw(session, card, logits)
    result = _result(session, card, fingerprint, size)
    figures = {"accuracy": card.accuracy, "nll": card.nll, "params": result.params, "macs": result.macs}
    session.trackers.finish(result.epochs, figures | {"seconds": result.seconds})
    results.write(session.folder, result)
    session.keeper.clear()
    return result


def report(folder: Path, result: Result, how: str) -> None:
    """Print the final table."""
    out = console()
    out.print(f"\n{folder}: {how}\n", markup=False)
    out.print(results.table(result, folder))


def _classifier(session: Session, card: Scorecard, fingerprint: str) -> modelfile.Classifier:
    facts = {"version": __version__, "fingerprint": fingerprint, "split": session.judged_on, "n": card.n}
    facts |= {"accuracy": card.accuracy, "interval": list(card.interval)}
    facts |= {"params": session.weights.params, "computed_on": session.computed_on, "data": session.splits.digest()}
    return modelfile.Classifier(
        network=session.network,
        recipe=structs.replace(session.recipe, distill=session.learned),
        name=session.named.name,
        classes=session.splits.train.classes,
        image_shape=session.splits.train.image_shape,
        mean=session.pipeline.mean,
        std=session.pipeline.std,
        facts=facts,
    )


def _result(session: Session, card: Scorecard, fingerprint: str, model_bytes: int) -> Result:
    settings, weights = session.recipe.train, session.weights
    images = min(session.plan.steps * settings.batch_size, settings.length * len(session.splits.train))
    state, seconds = session.state, max(session.state.seconds, 1e-9)
    return Result(
        name=session.named.name,
        command=recipe.reproduce(session.named),
        fingerprint=fingerprint,
        version=__version__,
        seed=settings.seed,
        split="validation" if session.splits.validation else "test",
        test_readings=results.readings(session.folder),
        scorecard=card,
        computed_on=session.computed_on,
        averaged=bool(state.average or state.lookahead),
        params=weights.params,
        macs=weights.macs,
        train_pflops=(12 if settings.sam else 6) * weights.macs * images / 1e15,
        epochs=settings.length,
        seconds=state.seconds,
        images_per_second=images / seconds,
        waiting=state.waited / seconds,
        augmenting=state.augmented / seconds,
        saving=state.saved / seconds,
        peak_memory=device.peak_memory(session.device),
        model_bytes=model_bytes,
    )


def draw(session: Session, card: Scorecard, logits: Tensor) -> None:
    """The scorecard's pictures, curves.png and samples.png, which shows what the network really saw."""
    folder, name = session.folder, session.named.name
    headline = f"{name}: {card.accuracy:.2%} on {card.n:,} {session.judged_on} images"
    judge.draw(card, logits, session.split(session.judged_on), folder, headline)
    charts.curves(session.metrics.records, folder / "curves.png", headline)
    _contact_sheet(session.named, session.pipeline, session.loader, folder / "samples.png")


def _contact_sheet(
    named: Named, pipeline: Pipeline, loader: Loader, path: str | Path, images: int = 8, draws: int = 7
) -> None:
    with ranks.alone():
        batch = next(loader.epoch(0))
    epochs = [pipeline.augment(batch, epoch, epoch * loader.steps) for epoch in range(draws)]
    earlier = (batch.labels[:1024, None] == batch.labels[:1024]).tril(-1).sum(1)  # images of its class before each
    rows = earlier.argsort(stable=True)[:images]
    seen = [(each.images[rows].cpu(), each.labels[rows].cpu()) for each in (batch, *epochs)]
    title = f"{named.name}: {', '.join(named.recipe.augment.ops) or 'no augmentation'}"
    grids.samples(seen, loader.dataset.classes, path, title)
