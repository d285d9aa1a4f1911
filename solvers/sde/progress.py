"""The line that shows how far a run is."""

import sys
import time
from collections.abc import Callable
from typing import Any

# A notebook keeps what it has shown: runs that are shorter than that show nothing there.
_quiet_seconds = 2.0


class Progress:
    """One line, renewed at the end of each segment: on standard error, or as an output of a notebook's cell."""

    def __init__(self, show: bool | None, total: int):
        self.display = _notebook()
        self.handle: Any = None
        self.show = (self.display is not None or sys.stderr.isatty()) if show is None else show
        self.total, self.done, self.began = total, 0, time.perf_counter()

    def add(self, path_steps: int) -> None:
        """Counts so many more, and shows how many there are."""
        self.done += path_steps
        rate = self.done / max(time.perf_counter() - self.began, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        self._write(f"{100 * self.done / self.total:5.1f} %, {rate:.3g} path-steps/s, {left:.0f} s left ")

    def wait(self) -> None:
        """Shows that other workers have what is left to do."""
        self._write("waiting for other workers ")

    def close(self) -> None:
        """Removes the line."""
        if self.handle is not None:
            self.handle.update({"text/plain": ""}, raw=True)
        elif self.show and self.display is None:
            print(file=sys.stderr)

    def _write(self, line: str) -> None:
        if not self.show:
            return
        if self.display is None:
            print(f"\r{line}", end="", file=sys.stderr, flush=True)
        elif self.handle is not None:
            self.handle.update({"text/plain": line}, raw=True)
        elif time.perf_counter() - self.began >= _quiet_seconds:
            self.handle = self.display({"text/plain": line}, raw=True, display_id=True)


def _notebook() -> Callable | None:
    """The function of IPython that shows something under a cell, if this is a notebook."""
    ipython: Any = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    return ipython.display.display
