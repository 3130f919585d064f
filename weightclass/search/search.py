"""A search from its recipe to the one full training of what it found. Read this file first."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from weightclass import config, recipe, results, run
from weightclass.config import joined, key_of
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.evaluation.metrics import wilson
from weightclass.files import Busy, atomic_write, safe_name
from weightclass.model.resnet import ResNetConfig
from weightclass.recipe import Recipe
from weightclass.runlog import say
from weightclass.search import front, sheet, space, trials
from weightclass.search.milliseconds import milliseconds
from weightclass.search.sheet import Row, Sheet
from weightclass.search.trials import Search
from weightclass.session import located
from weightclass.stopping import EXIT_CODES, Stopper
from weightclass.study import grid
from weightclass.study.grid import Job
from weightclass.study.plan import Short
from weightclass.workers import helping

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SHORTER = 10
"""How many times shorter than the recipe's a trial's training is where nobody says."""
POLL = 5.0
"""Seconds between two looks at what other processes hold."""
STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
"""Optuna's names of a trial's ends, and ours."""


def run_search(
    name: str,
    *settings: str,
    count: int = 20,
    epochs: int = 0,
    finalists: int = 3,
    over: Sequence[str] = tuple(space.GROUPS),
    latency_ms: float = 0.0,
    seed: int = 0,
    final: bool = True,
    out: str | Path = "runs",
    storage: str = "",
    jobs: int = 1,
    ray: str | None = None,
    time_limit: float | None = None,
    quiet: bool = False,
) -> tuple[Sheet, Path, str | None]:
    """Search for the best variant of recipe `name` with `settings` (its budget among them) in `count` short trials.

    The same call goes on where an earlier one stopped, in as many processes as one likes. The best `finalists` and the
    recipe itself are then trained in full, on the same images, and those held out choose among them; at the end
    (`final`) that one is trained on all images, and the test set read once. Returns the sheet, its folder, and why it
    stopped before all was done, if so. Raises UserError.
    """
    reserve = min(grid.SHEET, (time_limit or 0) / 2)
    deadline = None if time_limit is None else time.monotonic() + time_limit - reserve
    plan = planned(name, settings, count, epochs, finalists, over, latency_ms, seed, Path(out), storage)
    study = trials.opened(plan)
    with helping(work, (plan, True), jobs, ray, deadline, plan.out) as stopper:
        stopped = work(plan, quiet, stopper)
    said = {"--epochs": epochs, "--over": ",".join(over) if tuple(over) != tuple(space.GROUPS) else ""}
    said |= {"--latency-ms": latency_ms, "--seed": seed, "--storage": _hidden(storage)}
    said = {"--trials": count, "--finalists": str(finalists)} | said
    flags = [str(word) for flag, value in said.items() if value for word in (flag, value)]
    command = shlex.join(["weightclass", "search", name, *settings, *flags])
    told = gather(trials.counted(study), plan, command, timed=not stopped)
    _save(told, plan.folder)
    if told.best:
        found = plan.folder / f"{safe_name(plan.base.name)}-found.toml"
        atomic_write(found, found_recipe(told, name, settings))
        if final and not stopped and _ready(study, plan):
            outcome = finish(found, plan.out, Stopper(deadline), quiet)
            stopped, final_folder = outcome.stopped, outcome.folder.name
            told = structs.replace(told, final=outcome.result, final_folder=final_folder)
            _save(told, plan.folder)
    return told, plan.folder, stopped


def _save(told: Sheet, folder: Path) -> None:
    sheet.write(told, folder)
    front.save(told, folder)


def planned(
    name: str,
    settings: Sequence[str],
    count: int,
    epochs: int,
    finalists: int,
    over: Sequence[str],
    latency_ms: float,
    seed: int,
    out: Path,
    storage: str,
) -> Search:
    """What to do, the same in every process that is given the same words. Reads the images once. Raises UserError."""
    if strange := [group for group in over if group not in space.GROUPS]:
        raise UserError(f"--over {strange[0]}{config.near_miss(strange[0], space.GROUPS)}")
    if len(set(over)) < len(over):
        raise UserError(f"--over {','.join(over)}: one stands there twice")
    full = recipe.load(name, *settings).recipe
    cut = Short(epochs or max(1, full.train.length // SHORTER)).settings(full)
    cut += ["data.watch_test=false"] * full.data.watch_test
    base = recipe.load(name, *joined(settings, cut))
    splits = sources.load(base.recipe.data)
    digest = splits.digest()
    assert splits.validation
    told = [recipe.fingerprint(base.recipe, digest), *over, str(seed), str(latency_ms)]
    identity = config.fingerprint(base.recipe.budget, *told)
    title = f"{safe_name(base.name)}-{identity[:8]}"
    whole = recipe.load(name, *joined(settings, [text for text in cut if key_of(text).startswith("data.")]))
    held_out, groups = len(splits.validation), tuple(over)
    return Search(title, base, whole, digest, held_out, groups, count, finalists, seed, out, storage, latency_ms)


def work(plan: Search, quiet: bool, stopper: Stopper) -> str | None:
    """Train trials until there are enough, then the finalists; returns why it stopped early, or None when nothing is
    left to this machine. Run by every process of a search."""
    study, waiting = trials.opened(plan), False
    while not (reason := stopper.reason()):
        if taken := trials.take(study, plan, stopper):
            trial, named = taken
            told = trials.train(study, trial, named, plan, stopper, quiet)
            if told in EXIT_CODES:
                return told
            if told != "busy":
                _say_trial(study.trials[trial.number], told, plan)
        elif any(trial.user_attrs.get("home", plan.home) == plan.home for trial in trials.open_trials(study)):
            if not (waiting or quiet):
                say("waiting for trials that other processes hold")
            waiting = True
            time.sleep(POLL)
        elif stopper.reason() is None:  # else it was in time to ask, but not to propose
            return grid.work(_finalists(study, plan), plan.out, quiet, stopper)
    return reason


def _finalists(study: Study, plan: Search) -> dict[Path, Job]:
    """The runs in full of the best trials and of the recipe itself, by their folders; none while trials are open."""
    chosen = [] if trials.open_trials(study) else trials.finalists(study, plan)
    named = {trial.number: plan.in_full(trial.user_attrs["settings"]) for trial in chosen}
    return {plan.run(each): Job(f"trial {number} in full", each) for number, each in named.items()}


def _ready(study: Study, plan: Search) -> bool:
    """Whether the best is known: every trial at its end, and every finalist."""
    if others := [str(trial.number) for trial in trials.open_trials(study)]:
        say(f"the final training waits for trial {', '.join(others)} on another machine: then the same command goes on")
    return not others and all(map(grid.settled, _finalists(study, plan)))


def finish(found: Path, out: Path, stopper: Stopper, quiet: bool) -> run.Outcome:
    """The one full training; where another process is at it, its result."""
    named, waiting = recipe.load(str(found)), False
    while True:
        try:
            return run.carry_out(named, out, stopper, quiet)
        except Busy:
            if reason := stopper.reason():
                return run.Outcome(Path(), None, reason)
            if not waiting:
                say("another process trains what was found: waiting for it")
            waiting = True
            time.sleep(POLL)


# --- what it came to ---------------------------------------------------------------------------------------


def gather(found: Sequence[FrozenTrial], plan: Search, command: str, timed: bool = True) -> Sheet:
    """The sheet of a search with whatever its trials have come to; if `timed`, with all milliseconds."""
    base = plan.base.recipe
    rows = [_row(trial, plan) for trial in found if "settings" in trial.user_attrs]
    limits = {key: str(value) for key, value in config.to_tree(base.budget).items() if value != ""}
    return Sheet(
        name=plan.name,
        command=command,
        recipe=plan.base.source,
        limits=limits | ({"latency_ms": f"{plan.latency_ms:g}"} if plan.latency_ms else {}),
        over=plan.over,
        wanted=plan.trials,
        epochs=base.train.length,
        full_epochs=plan.whole.recipe.train.length,
        seed=plan.seed,
        held_out=plan.held_out,
        rows=tuple(_timed(rows, plan, timed)),
    )


def _row(trial: FrozenTrial, plan: Search) -> Row:
    n, facts, state = plan.held_out, trial.user_attrs, STATES.get(trial.state.name, "open")
    named = plan.named(facts["settings"])
    told = trial.intermediate_values
    last = max(told, default=0)
    full = results.read(plan.run(plan.in_full(facts["settings"]))) if state == "done" and plan.finalists else None
    accuracy = trial.value if state == "done" else told.get(last)
    assert state != "done" or accuracy is not None
    return Row(
        number=trial.number,
        state=state,  # type: ignore[arg-type]
        settings=tuple(facts["settings"]),
        network=brief(named.recipe),
        params=facts["params"],
        macs=facts["macs"],
        epochs=last,
        accuracy=accuracy,
        interval=wilson(round(accuracy * n), n) if accuracy is not None and state == "done" else None,
        full=full and full.scorecard.accuracy,
        full_interval=full and full.scorecard.interval,
        why=facts.get("why", ""),
        folder=plan.run(named).name,
    )


def brief(settings: Recipe) -> str:
    """A network in short: `2,2,2,2 x 16,32,64,128`, others than residual ones with their name before it."""
    model = config.to_tree(settings.model)
    parts = [",".join(map(str, model[key])) for key in ("blocks", "channels") if key in model]
    named = [] if isinstance(settings.model, ResNetConfig) else [model["name"]]
    return " x ".join(named + (parts or [f"{model['width']:g}"]))


def _timed(rows: Sequence[Row], plan: Search, measured: bool) -> list[Row]:
    """With the milliseconds of finished trials: those known already, or all `measured` together if one is new."""
    done = [row.number for row in rows if row.state == "done"]
    known = {}
    with suppress(UserError):  # none yet, or one of another version
        known = {row.number: row.ms for row in sheet.read(plan.folder).rows if row.ms is not None}
    if measured and not known.keys() >= set(done):
        models = [plan.named(list(row.settings)).recipe.model for row in rows if row.number in done]
        known = dict(zip(done, milliseconds(models, plan.found), strict=True))
    return [structs.replace(row, ms=known.get(row.number)) for row in rows]


def found_recipe(told: Sheet, name: str, settings: Sequence[str]) -> str:
    """The best recipe as a file: what was found, in the training that was asked for, on all images."""
    best = told.best
    assert best
    assert best.accuracy is not None
    named = recipe.load(name, *trials.laid(joined(settings, ["data.validation=0"]), best.settings))
    read = f"{best.accuracy:.2%} of {told.held_out:,} images held out, after {told.epochs} epochs"
    read += f", {best.full:.2%} after {told.full_epochs}" if best.full is not None else ""
    lines = [
        f"{named.name}-found: the best of {len(told.done)} finished trials of a search.",
        "",
        f"found by   {told.command}",
        f"trial {best.number}    {read}",
        f"weighs     {best.params:,} parameters, {best.macs / 1e6:,.1f} M MACs",
    ]
    return "\n".join(f"# {line}".rstrip() for line in lines) + "\n\n" + config.to_toml(located(named.recipe))


def _hidden(url: str) -> str:
    """A database's address without its password."""
    return re.sub(r"(?<=//)([^:@/]*):[^@/]*@", r"\1:...@", re.sub(r"(?<=password=)[^&]*", "...", url))


def _say_trial(trial: FrozenTrial, told: str, plan: Search) -> None:
    named, last = plan.named(trial.user_attrs["settings"]), max(trial.intermediate_values, default=0)
    accuracy = f", validation {trial.intermediate_values[last]:.2%} after epoch {last}" if last else ""
    say(f"[trial {trial.number}] {brief(named.recipe)} {told}{accuracy}")
