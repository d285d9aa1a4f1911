"""The line that shows how far a run is."""

import sys
import time


class Progress:
    """One line on standard error, renewed at the end of each segment."""

    def __init__(self, show: bool | None, total: int):
        self.show = sys.stderr.isatty() if show is None else show
        self.total, self.done, self.began = total, 0, time.perf_counter()

    def add(self, path_steps: int) -> None:
        self.done += path_steps
        if self.show:
            rate = self.done / max(time.perf_counter() - self.began, 1e-9)
            left = (self.total - self.done) / rate
            line = f"\r{100 * self.done / self.total:5.1f} %, {rate:.3g} path-steps/s, {left:.0f} s left "
            print(line, end="", file=sys.stderr, flush=True)

    def wait(self) -> None:
        if self.show:
            print("\rwaiting for other workers ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.show:
            print(file=sys.stderr)
