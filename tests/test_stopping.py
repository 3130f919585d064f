"""One Ctrl-C or SIGTERM is noted, the second obeyed; time limits count the work that still lies ahead."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from weightclass.stopping import EXIT_CODES, Stopper


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_is_noted_the_second_obeyed(number: signal.Signals, reason: str) -> None:
    before = signal.getsignal(number)
    with Stopper() as stopper:
        assert stopper.reason() is None
        os.kill(os.getpid(), number)
        assert stopper.reason() == reason
        with pytest.raises(SystemExit, match=str(EXIT_CODES[reason])):
            os.kill(os.getpid(), number)
        assert stopper.reason() == reason
    assert signal.getsignal(number) is before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Stopper():
        assert signal.getsignal(signal.SIGTERM) is not before
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_nothing_is_caught() -> None:
    Stopper()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_deadline_with_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    stopper, now = Stopper(deadline=100.0), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for now[0], reserve, reason in [(0, 0, None), (89, 10, None), (90, 10, "time limit"), (100, 0, "time limit")]:
        assert stopper.reason(reserve) == reason
    assert Stopper().reason(1e9) is None


def test_a_signal_goes_before_the_time_limit() -> None:
    with Stopper(deadline=time.monotonic() - 1) as stopper:
        assert stopper.reason() == "time limit"
        signal.raise_signal(signal.SIGTERM)
        assert stopper.reason() == "SIGTERM"


def test_in_another_thread_it_only_keeps_time() -> None:
    """Python lets the main thread alone set handlers."""
    reasons: list[str | None] = []

    def work() -> None:
        with Stopper(deadline=0.0) as stopper:
            reasons.append(stopper.reason())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reasons == ["time limit"]


def test_every_reason_has_its_exit_code() -> None:
    assert EXIT_CODES == {"Ctrl-C": 128 + signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM, "time limit": 0}
