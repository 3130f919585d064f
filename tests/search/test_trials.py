"""Trials in the storage: however many processes come and die, as many are trained as were wanted, and each once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.reference.trainings import Trainings
from weightclass import recipe, run
from weightclass.errors import UserError
from weightclass.files import run_lock
from weightclass.search import trials
from weightclass.search.trials import PRUNED, Search, counted, open_trials, opened, take
from weightclass.stopping import Stopper

FOUR = ("train.epochs=4", "data.validation=0.2", "budget.params=100k")


def plan(tmp_path: Path, count: int = 4, *settings: str, **more: Any) -> Search:
    """Nothing is read: the images' hash is made up."""
    base = recipe.load("quickstart", *(settings or FOUR))
    return Search("tiny-1234", base, base, "digest", 50, ("model", "optimizer"), count, 3, 0, tmp_path, **more)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    instead = Trainings()
    monkeypatch.setattr(run, "carry_out", instead)
    return instead


def go(search: Search, most: int = 1000) -> list[str]:
    """What one process does until nothing is left to it; at most so many trials."""
    study, told = opened(search), []
    while len(told) < most and (taken := take(study, search, Stopper())):
        told.append(trials.train(study, *taken, search, Stopper(), True))
    return told


def told_of(search: Search) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.value, t.user_attrs.get("settings")) for t in counted(opened(search))]


def test_a_run_that_was_there_already_tells_its_accuracy(tmp_path: Path, training: Trainings) -> None:
    first, second = plan(tmp_path, 1), replace(plan(tmp_path, 1), name="tiny-5678")
    go(first)
    go(second)
    assert len(training.trained) == 1
    [trial] = counted(opened(second))
    assert trial.intermediate_values == {4: trial.value}


def test_a_broken_off_search_ends_as_an_unbroken_one(tmp_path: Path, training: Trainings) -> None:
    whole, broken = plan(tmp_path / "a", 5), plan(tmp_path / "b", 5)
    assert len(go(whole)) == 5
    once = Counter(training.trained)
    training.trained.clear()
    for accident in (0, 2, 3):
        training.accident[accident] = KeyboardInterrupt()  # as good as a kill: nothing is told
        with pytest.raises(KeyboardInterrupt):
            go(broken)
    go(broken)
    assert Counter(training.trained) == once
    assert told_of(broken) == told_of(whole)
    assert {state for _, state, *_ in told_of(whole)} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert not go(whole)


def test_the_first_trial_is_the_recipe_itself_and_never_pruned(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 3)
    go(search)
    (_, state, _, settings), *_ = told_of(search)
    assert state is TrialState.COMPLETE
    assert settings == []


def test_what_does_not_fit_is_refused_before_training_and_does_not_count(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 1, "train.epochs=2", "data.validation=0.2", "budget.params=79k", "budget.activations=12kB")
    go(search)
    every = opened(search).trials
    assert len(every) > len(counted(opened(search))) == 1 == len(training.trained)
    assert "activations" in " ".join(t.user_attrs.get("refused", "") for t in every)
    assert all(t.state is TrialState.FAIL for t in every if "refused" in t.user_attrs)


def test_a_budget_that_nothing_fits_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "REFUSALS", 2)
    search = plan(tmp_path, 1, "train.epochs=2", "data.validation=0.2", "budget.params=30")
    with pytest.raises(UserError, match=r"of \d+ proposals none fits: raise --budget"):
        go(search)


def test_too_slow_a_network_is_refused(tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 1.0, 9.0, 2.0])
    monkeypatch.setattr(trials, "milliseconds", lambda models, found: [next(times)])
    search = plan(tmp_path, 2, latency_ms=5.0)
    go(search)
    assert [t.user_attrs.get("refused", "") for t in opened(search).trials] == [
        *("9.00 ms is not under 5", "", "9.00 ms is not under 5", "")
    ]


def test_a_trial_in_another_process_is_left_alone_until_that_dies(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    study = opened(search)
    taken = take(study, search, Stopper())
    assert taken
    with run_lock(search.run(taken[1])):
        assert len(go(search)) == 1, "the other one"
        assert [t.number for t in open_trials(study)] == [0]
        assert take(study, search, Stopper()) is None
    assert go(search) == ["done"]


def test_another_machines_trial_is_left_alone(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 1)
    study = opened(search)
    trial, _ = take(study, search, Stopper()) or pytest.fail("none")
    trial.set_user_attr("home", "elsewhere:/runs")
    assert take(study, search, Stopper()) is None
    assert open_trials(study)


def test_a_trial_whose_process_died_before_it_had_settings(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = plan(tmp_path, 2)
    study = opened(search)
    study.ask().set_user_attr("home", search.home)
    assert len(go(search)) == 1, "it may still get them"

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(minutes=2)

    monkeypatch.setattr(trials, "datetime", Later)
    assert go(search) == ["done"]
    assert told_of(search)[0][-1] == []


def test_of_several_that_ask_at_once_only_as_many_as_are_wanted_go_on(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    study = opened(search)
    go(search, most=1)
    other = study.ask()  # of another process, between our counting and our asking
    wanted = optuna.Study.ask

    def late(self: optuna.Study) -> optuna.Trial:
        other.set_user_attr("settings", ["model.blocks=1,1"])
        return wanted(self)

    study.ask = late.__get__(study)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trials,
            "counted",
            lambda study, real=counted: [t for t in real(study) if t.number != other.number or t.user_attrs],
        )
        assert take(study, search, Stopper()) is None
    assert study.trials[2].user_attrs["refused"] == "one too many"
    assert len(counted(study)) == 2


def test_a_failure_is_told_with_its_reason_and_the_search_goes_on(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 3)
    training.accident[1] = UserError("the loss is no longer a number\nat length")
    assert go(search)[1] == "failed: the loss is no longer a number"
    assert counted(opened(search))[1].user_attrs["why"] == "failed: the loss is no longer a number"
    assert len(training.trained) == 2


def test_a_time_limit_leaves_the_trial_open(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    training.stop = "time limit"
    assert go(search, most=1) == ["time limit"]
    training.stop = None
    go(search)
    assert len(training.trained) == 2
    assert not open_trials(opened(search))


def test_a_decision_to_prune_outlives_the_process(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    go(search, most=1)
    study = opened(search)
    trial, _ = take(study, search, Stopper()) or pytest.fail("none")
    trial.report(0.1, 1)
    trial.set_user_attr(PRUNED, True)
    assert go(search) == [PRUNED]
    assert study.trials[1].value == 0.1
    assert len(training.trained) == 1


def test_what_was_proposed_before_is_refused(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals = iter([["model.blocks=2,1,1"], ["model.blocks=2,1,1"], ["model.blocks=1,2,1"]])
    monkeypatch.setattr(trials.space, "settings", lambda *_: next(proposals))
    search = plan(tmp_path, 3)
    go(search)
    assert [settings for *_, settings in told_of(search)] == [[], ["model.blocks=2,1,1"], ["model.blocks=1,2,1"]]
    assert opened(search).trials[2].user_attrs["refused"] == "proposed before"
    assert len(training.trained) == 3


def test_where_there_is_nothing_left_to_propose_the_search_is_at_its_end(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials.space, "settings", lambda trial, *_: [f"model.blocks={trial.number % 2 + 1},1,1"])
    search = plan(tmp_path, 5)
    for _ in range(2):
        go(search)
        assert [settings for *_, settings in told_of(search)] == [[], ["model.blocks=2,1,1"], ["model.blocks=1,1,1"]]
    asked = len(opened(search).trials)
    assert take(opened(search), search, Stopper()) is None
    assert len(opened(search).trials) == asked, "known by now"


def test_a_time_limit_ends_the_asking(tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    search = plan(tmp_path, 2)
    go(search, most=1)
    stopper = Stopper()

    def late(*_: Any) -> None:
        stopper.asked = "SIGTERM"

    monkeypatch.setattr(trials.space, "settings", late)
    assert take(opened(search), search, stopper) is None
    assert len(opened(search).trials) == 2


def test_two_processes_upon_one_finished_run_are_one_answer(tmp_path: Path, training: Trainings) -> None:
    """Both adopted a trial before either held its run."""
    search = plan(tmp_path, 1)
    study, again = opened(search), opened(search)
    trial, named = take(study, search, Stopper()) or pytest.fail("none")
    twin = optuna.Trial(again, trial._trial_id)
    assert trials.train(study, trial, named, search, Stopper(), True) == "done"
    assert trials.train(again, twin, named, search, Stopper(), True) == "done"
    assert len(training.trained) == 1
    trials._refuse(again, twin, "too late")
    assert "refused" not in counted(opened(search))[0].user_attrs


def test_equal_settings_are_trained_once(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    go(search, most=1)
    study = opened(search)
    twin = study.ask()
    twin.set_user_attr("home", search.home)
    for key, value in {"params": 1, "macs": 1, "settings": []}.items():
        twin.set_user_attr(key, value)
    assert go(search) == ["done"]
    assert len(training.trained) == 1
    assert study.trials[0].value == study.trials[1].value


def test_a_line_that_was_cut_short_goes(tmp_path: Path, training: Trainings) -> None:
    search = plan(tmp_path, 2)
    go(search, most=1)
    journal = search.folder / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":9,"worker')
    go(search)
    assert [state for _, state, *_ in told_of(search)] == [TrialState.COMPLETE, TrialState.COMPLETE]
    assert journal.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("url", "says"),
    {
        "nonsense": "--storage: the database cannot be used: Could not parse",
        "sqlite:////nowhere/at/all.db": "--storage: the database cannot be used: ",
        "oracle://host/db": "--storage: Failed to import",
    }.items(),
)
def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(UserError) as told:
        opened(plan(tmp_path, storage=url))
    assert str(told.value).startswith(says)
    assert "\n" not in str(told.value)
