"""Trials in Optuna's storage, each a run in the folder of runs: taken, trained, pruned and told, none lost or twice.

A trial is in one of Optuna's states, and its run's lock says whether somebody works on it. One that is "running" with
nobody at its lock lost its process; whoever comes next goes on with it from its checkpoint.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightclass import recipe, run, seeding
from weightclass.config import joined, key_of
from weightclass.data import sources
from weightclass.data.sources import Found
from weightclass.errors import UserError, first_line
from weightclass.files import Busy, Unwritable, atomic_write, cured, held
from weightclass.recipe import Named
from weightclass.runtimes.runner import needs
from weightclass.search import space
from weightclass.search.milliseconds import milliseconds
from weightclass.stopping import Stopper
from weightclass.training.checkpoint import Keeper

if TYPE_CHECKING:
    import optuna

PRUNED = "pruned"
RACE, RACES = 5.0, ("IntegrityError", "ProgrammingError")
"""Seconds in which these errors may come of several processes that make a new database's tables at once."""
FRESH = 60.0
"""Seconds in which a trial without settings may still get them from the process that asked for it."""
REFUSALS = 20
"""Proposals that do not fit or were made before, for each trial that is wanted, after which there are no more."""


@dataclass(frozen=True)
class Search:
    """What is searched, where, and how long: a plan that every process has alike."""

    name: str
    """Of the study in the storage, and of its folder."""
    base: Named
    """The recipe of a trial before anything is chosen: short, with its budget, images held out."""
    whole: Named
    """The same in full."""
    digest: str
    """Of its images."""
    held_out: int
    """Those that trials are judged on."""
    over: tuple[str, ...]
    """Names of space.GROUPS."""
    trials: int
    finalists: int
    seed: int
    out: Path
    storage: str = ""
    """A database's URL; "": a journal file in the search's folder."""
    latency_ms: float = 0.0

    @property
    def folder(self) -> Path:
        """Of the search's own files."""
        return self.out / "searches" / self.name

    @property
    def found(self) -> Found:
        """Its images, as far as their files tell."""
        return _find(self.base.recipe.data)  # type: ignore[arg-type]

    @property
    def home(self) -> str:
        """Names the folder of runs, on whatever machines see it: those can go on with its runs, others cannot."""
        return _home(self.folder.parent)

    def named(self, settings: list[str]) -> Named:
        """The run of a trial."""
        return recipe.load(self.base.source, *laid(self.base.overrides, settings))

    def in_full(self, settings: list[str]) -> Named:
        """The run of a finalist."""
        return recipe.load(self.whole.source, *laid(self.whole.overrides, settings))

    def run(self, named: Named) -> Path:
        """Where it lies."""
        return run.folder_of(named, recipe.fingerprint(named.recipe, self.digest), self.out)


def laid(overrides: Iterable[str], settings: Sequence[str]) -> list[str]:
    """A trial's `settings` upon a recipe's `overrides`, which lose all of a table that is of another kind now."""
    changed = {key_of(text).removesuffix(".name") for text in settings if key_of(text).endswith(".name")}
    return joined([text for text in overrides if key_of(text).partition(".")[0] not in changed], settings)


@cache
def _home(searches: Path) -> str:
    import filelock

    path = searches / "home"
    with cured(path):
        searches.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(searches / ".lock"):
            if not path.exists():
                atomic_write(path, uuid.uuid4().hex)
    return path.read_text(encoding="utf-8")


_find = cache(sources.find)  # no field of the plan, which goes from process to process


def opened(search: Search) -> optuna.Study:
    """The search's study, made where it is new. Raises UserError: Optuna is missing, the storage cannot be used."""
    with needs("search", "weightclass search"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    epochs = search.base.recipe.train.length
    end = time.monotonic() + RACE
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, epochs // 4), reduction_factor=2)
    while True:
        try:
            return optuna.create_study(
                storage=_storage(search),
                study_name=search.name,
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (ImportError, ValueError, OSError, RuntimeError) as error:
            raise UserError(f"--storage: {first_line(error)}") from None
        except Exception as error:  # a database's own
            if not type(error).__module__.startswith("sqlalchemy"):
                raise
            if type(error).__name__ not in RACES or time.monotonic() > end:
                raise UserError(f"--storage: the database cannot be used: {first_line(error)}") from None
            time.sleep(0.5)


def _storage(search: Search) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if search.storage:
        url = search.storage.replace("postgresql://", "postgresql+psycopg://", 1)
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    journal = search.folder / "journal.log"
    with cured(journal):
        journal.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(journal), _Lock(journal)))  # type: ignore[arg-type]


class _Lock:
    """For the journal: Optuna's own outlive a killed process for half a minute, the system's go with it. A line that
    a full disk cut short goes, too."""

    def __init__(self, journal: Path) -> None:
        import filelock

        self.journal, self.lock = journal, filelock.FileLock(journal.with_suffix(".lock"))

    def acquire(self) -> bool:
        self.lock.acquire()
        with self.journal.open("rb+") as file:
            size = file.seek(0, 2)
            file.seek(max(size - 2**20, 0))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self.lock.release()


# --- one trial ---------------------------------------------------------------------------------------------


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that are or were worked on, in their order."""
    return [trial for trial in study.get_trials(deepcopy=False) if "refused" not in trial.user_attrs]


def open_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Those of them that have not come to an end."""
    return [trial for trial in counted(study) if not trial.state.is_finished()]


def finalists(study: optuna.Study, search: Search) -> list[optuna.trial.FrozenTrial]:
    """The best of the finished trials, of equal ones the cheaper, and the recipe itself."""
    done = [trial for trial in counted(study) if trial.state.name == "COMPLETE"]
    done.sort(key=lambda trial: (-(trial.value or 0), trial.user_attrs["macs"], trial.number))
    best = done[: search.finalists]
    return best + [trial for trial in done[len(best) :] if trial.number == 0 and best]


def take(study: optuna.Study, search: Search, stopper: Stopper) -> tuple[optuna.Trial, Named] | None:
    """A trial to work on: one that lost its process, or a new one while there are not enough; None where this process
    can do nothing more now, or there is nothing left to propose. Raises UserError where nothing fits the budget."""
    import optuna

    for frozen in open_trials(study):
        if _orphaned(frozen, search):
            trial = optuna.Trial(study, frozen._trial_id)
            if named := _proposed(trial, study, search):
                return trial, named
    most, asked = REFUSALS * search.trials, len(study.get_trials(deepcopy=False))
    while len(counted(study)) < search.trials and asked <= most and not stopper.reason():
        trial = study.ask()
        trial.set_user_attr("home", search.home)
        before = [other for other in counted(study) if other.number < trial.number]
        if len(before) >= search.trials:  # several asked at once
            return _refuse(study, trial, "one too many")
        if named := _proposed(trial, study, search):
            return trial, named
        asked = trial.number
    if asked > most and len(counted(study)) < 2:
        raise UserError(f"of {asked} proposals none fits: raise --budget (or other limits), or choose --over more")
    return None


def _orphaned(trial: optuna.trial.FrozenTrial, search: Search) -> bool:
    if trial.user_attrs.get("home", search.home) != search.home:
        return False
    if "settings" in trial.user_attrs:
        return not held(search.run(search.named(trial.user_attrs["settings"])))
    started = trial.datetime_start or datetime.now()
    return (datetime.now() - started).total_seconds() > FRESH


def _proposed(trial: optuna.Trial, study: optuna.Study, search: Search) -> Named | None:
    """The trial's run; None, and the trial refused, where it would break a limit. The first trial of all is the recipe
    itself, where that fits."""
    if "settings" in trial.user_attrs:
        return search.named(trial.user_attrs["settings"])
    study.sampler = _sampler(search, trial.number)
    base = search.base.recipe
    settings = [] if trial.number == 0 else space.settings(trial, base, search.found, search.over)
    if settings is None:
        return _refuse(study, trial, "no such network fits")
    if settings in [other.user_attrs.get("settings") for other in counted(study)]:
        return _refuse(study, trial, "proposed before")
    named = search.named(settings)
    weights = recipe.weigh(named.recipe, search.found)
    for key, limit in ((key, base.budget.limit(key)) for key in base.budget.__struct_fields__):
        if limit is not None and getattr(weights, key) >= limit:
            return _refuse(study, trial, f"{key} {getattr(weights, key):,} is not under {limit:,}")
    if search.latency_ms:
        [took] = milliseconds([named.recipe.model], search.found)
        if took >= search.latency_ms:
            return _refuse(study, trial, f"{took:.2f} ms is not under {search.latency_ms:g}")
    for key in ("params", "macs"):
        trial.set_user_attr(key, getattr(weights, key))
    trial.set_user_attr("settings", settings)  # last: from here on it can be adopted
    return named


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """One a trial, seeded by its number: a search that is broken off goes on with the same proposals."""
    from optuna.samplers import TPESampler

    seed = seeding.key(search.seed, "search", number) % 2**32
    return TPESampler(seed=seed, n_startup_trials=10)


def _refuse(study: optuna.Study, trial: optuna.Trial, why: str) -> None:
    from optuna.trial import TrialState

    with _told_once():
        trial.set_user_attr("refused", why)
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)


def _told_once() -> AbstractContextManager[None]:
    """Of two processes that came upon one trial's end, the second is not heard, and need not be."""
    from optuna.exceptions import UpdateFinishedTrialError

    return suppress(UpdateFinishedTrialError)


def train(study: optuna.Study, trial: optuna.Trial, named: Named, search: Search, stopper: Stopper, quiet: bool) -> str:
    """Train it to its end and tell: "done", "pruned", "failed: why", "busy" (another process has it), or why it stopped
    early, saved. Raises Unwritable and OSError, which are nobody's failure."""
    from optuna.trial import TrialState

    def report(accuracy: float, epoch: int) -> None:
        with warnings.catch_warnings():  # an epoch that a kill had taken back is reported again
            warnings.simplefilter("ignore")
            trial.report(accuracy, epoch)

    def watch(record: dict[str, Any]) -> str | None:
        report(record["validation_accuracy"], record["epoch"])
        if trial.number == 0 or record["epoch"] == epochs or not trial.should_prune():
            return None
        trial.set_user_attr(PRUNED, True)  # asked once more, after a kill, the pruner might say something else
        return PRUNED

    epochs, state, value = named.recipe.train.length, TrialState.FAIL, None
    try:
        outcome = run.carry_out(named, search.out, stopper, quiet, watch) if PRUNED not in trial.user_attrs else None
    except Busy:
        return "busy"
    except (Unwritable, OSError):
        raise
    except Exception as error:  # a rate at which the loss diverges, memory: this trial's own
        told = f"failed: {first_line(error)}"
        with _told_once():
            trial.set_user_attr("why", told)
    else:
        told = (outcome.stopped or "done") if outcome else PRUNED
        if told == PRUNED:
            state = TrialState.PRUNED
        elif outcome and outcome.result:
            state, value = TrialState.COMPLETE, outcome.result.scorecard.accuracy
            with _told_once():
                report(value, epochs)  # where another search had trained it, nobody watched
        else:
            return told
    study.tell(trial, value, state, skip_if_finished=True)
    if told == PRUNED:
        Keeper(search.run(named) / "checkpoint").clear()
    return told
