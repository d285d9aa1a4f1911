"""Ctrl-C and SIGTERM, taken when a run is ready to stop."""

import os
import signal
import threading
from types import FrameType


class Interrupts:
    """A context in which the signals that end a program are noted instead, to be looked at between segments of steps.

    A second Ctrl-C acts at once. Outside the main thread nothing changes: Python delivers signals to that one alone.
    """

    def __init__(self, *numbers: signal.Signals):
        self.noted: int | None = None
        self._numbers = numbers if threading.current_thread() is threading.main_thread() else ()
        self._before = {}

    def __enter__(self) -> "Interrupts":
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that Python did not install, and can't bring back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def act(self) -> None:
        """Does what the signal noted would have done, after the context has ended."""
        if self.noted is not None:
            os.kill(os.getpid(), self.noted)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.noted == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.noted = number
