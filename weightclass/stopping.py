"""Reasons to stop early: Ctrl-C, SIGTERM and a time limit, asked for between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143, "time limit": 0}
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopper:
    """While entered, the first Ctrl-C or SIGTERM is noted, not obeyed at once; a second one is.

    `deadline` is a time.monotonic() value.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self.asked: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(EXIT_CODES[_SIGNALS[signal.Signals(number)]])
        self.asked = _SIGNALS[signal.Signals(number)]

    def reason(self, reserve: float = 0.0) -> str | None:
        """Why to stop now, if at all; `reserve` seconds of work still lie between now and the next question."""
        if self.asked:
            return self.asked
        if self.deadline is not None and time.monotonic() + reserve >= self.deadline:
            return "time limit"
        return None
