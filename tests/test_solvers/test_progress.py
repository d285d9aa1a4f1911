"""The line that shows how far a run is: in terminals and notebooks, and nowhere else."""

import sys
import types

import pytest

from solvers.sde import progress
from solvers.sde.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


class _Notebook:
    """What IPython is to `Progress`: all that was shown, the last update of a line in its place."""

    def __init__(self, kernel):
        self.shown = []
        self.display = types.SimpleNamespace(display=self._display)
        self.get_ipython = lambda: types.SimpleNamespace(**({"kernel": None} if kernel else {}))

    def _display(self, data, raw, display_id):
        assert raw
        assert display_id
        self.shown.append(data["text/plain"])
        return self

    def update(self, data, raw):
        assert raw
        self.shown[-1] = data["text/plain"]


def test_terminals_show_rate_and_time_left(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = Progress(None, 4000)
    clock[0] += 2.0
    line.add(1000)
    # 1000 in 2 s: 500 a second, and 3000 left.
    assert capsys.readouterr().err == "\r 25.0 %, 500 path-steps/s, 6 s left "
    line.wait()
    line.close()
    assert capsys.readouterr().err == "\rwaiting for other workers \n"


def test_notebooks_show_one_line_and_take_it_away(clock, monkeypatch, capsys):
    notebook = _Notebook(kernel=True)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    line = Progress(None, 4000)
    clock[0] += 1.0
    line.add(1000)
    assert notebook.shown == []
    for _ in range(2):
        clock[0] += 1.5
        line.add(1000)
    assert notebook.shown == [" 75.0 %, 750 path-steps/s, 1 s left "]
    line.close()
    assert notebook.shown == [""]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("ipython", [None, _Notebook(kernel=False)])
def test_elsewhere_all_is_silent_unless_asked(monkeypatch, capsys, ipython):
    if ipython is not None:
        monkeypatch.setitem(sys.modules, "IPython", ipython)

    def shown(show):
        line = Progress(show, 10)
        line.add(10)
        line.close()
        return capsys.readouterr().err

    assert shown(None) == shown(False) == ""
    assert shown(True).startswith("\r100.0 %, ")
