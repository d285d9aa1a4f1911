"""Leases: of several workers one gets a part, and those of dead workers are taken over."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from solvers.sde.checkpoint import Store
from solvers.sde.leases import Leases, now, unique_name

ROOT = Path(__file__).parents[2]

# A child that starts in 0.2 s: the package `solvers.sde` without its `__init__`, which imports JAX.
_light = f"""
import sys, types
sys.path.insert(0, {str(ROOT)!r})
import solvers
package = types.ModuleType("solvers.sde")
package.__path__ = [{str(ROOT / "solvers" / "sde")!r}]
sys.modules["solvers.sde"] = package
import numpy as np
from solvers.sde.checkpoint import Store
directory, arguments = sys.argv[1], sys.argv[2:]
"""


def _child(code, *arguments):
    command = [sys.executable, "-c", _light + code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def leases(tmp_path):
    for name in ("leases", "tmp"):
        (tmp_path / name).mkdir()
    return Leases(tmp_path / "leases", tmp_path / "tmp", 30.0)


def _age(leases, seconds):
    for path in leases.directory.iterdir():
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def test_a_part_is_leased_once_until_it_is_released(leases):
    with leases.claim(3) as lease:
        assert lease.part == 3
        assert leases.claim(3) is None
        with leases.claim(4):
            assert leases.claim(4) is None
        assert lease.renew()
    assert list(leases.directory.iterdir()) == []
    assert not lease.renew()
    with leases.claim(3):
        pass


def test_an_error_releases(leases):
    with pytest.raises(FloatingPointError), leases.claim(3):
        raise FloatingPointError
    assert leases.claim(3) is not None


def test_a_lease_lasts_as_long_as_it_is_renewed(leases):
    lease = leases.claim(3)
    _age(leases, 29)
    assert leases.claim(3) is None
    assert lease.renew()
    _age(leases, 29)
    assert leases.claim(3) is None


def test_a_stale_lease_is_taken_over_and_its_worker_learns_of_it(leases):
    slow = leases.claim(3)
    _age(leases, 31)
    taken = leases.claim(3)
    assert taken is not None
    assert leases.claim(3) is None
    assert not slow.renew()
    slow.release()
    assert leases.claim(3) is None
    assert taken.renew()
    taken.release()
    assert list(leases.directory.iterdir()) == []


def test_a_worker_does_not_take_the_lease_of_another_for_its_own(leases):
    """The same part, and a file of the same name: only the owner tells them apart."""
    slow = leases.claim(3)
    _age(leases, 31)
    leases.claim(3).release()
    other = leases.claim(3)
    assert not slow.renew()
    slow.release()
    assert other.renew()


def test_a_takeover_that_died_half_way(leases):
    """The file of the next generation is there, empty, and the one before has not been removed."""
    slow = leases.claim(3)
    (leases.directory / "00000003.2").touch()
    assert not slow.renew()
    assert leases.claim(3) is None
    _age(leases, 31)
    assert leases.claim(3).renew()
    assert [path.name for path in leases.directory.iterdir()] == ["00000003.3"]


def test_the_clock_of_the_machine_does_not_matter(leases, monkeypatch):
    lease = leases.claim(3)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert leases.claim(3) is None
    _age(leases, 31)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert leases.claim(3) is not None
    assert not lease.renew()


def test_the_time_is_that_of_files_and_leaves_none(tmp_path):
    first = now(tmp_path)
    (tmp_path / "file").touch()
    assert first <= (tmp_path / "file").stat().st_mtime <= now(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_names_are_unique_and_say_whose_they_are(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "a/b c.d")
    names = {unique_name() for _ in range(1000)}
    assert len(names) == 1000
    assert all(re.fullmatch(rf"a_b_c\.d-{os.getpid()}-[0-9a-f]{{16}}", name) for name in names)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_staleness_must_be_positive(tmp_path, seconds):
    with pytest.raises(ValueError, match="`stale_seconds` must be positive"):
        Store(tmp_path / "run", {}, stale_seconds=seconds)
    assert not (tmp_path / "run").exists()


# Several processes

_claimer = """
import pathlib, time
store = Store(directory, {})
print("ready", flush=True)
while not pathlib.Path(directory, "go").exists():
    pass
won = []
for part in range(200):
    if store.claim(part):
        won.append(part)
        time.sleep(0.002)  # Otherwise one can be done before the system lets the others begin.
print(*won, flush=True)
sys.stdin.read()  # The leases of a process that has ended are free for the others: stay until all have their share.
"""


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_several_processes_gets_each_part(tmp_path, stale):
    store = Store(tmp_path, {})
    if stale:
        for part in range(200):
            store.claim(part)
        _age(store._leases, 31)
    children = [_child(_claimer, tmp_path) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n", child.communicate()
    (tmp_path / "go").touch()
    won = [list(map(int, child.stdout.readline().split())) for child in children]
    for child in children:
        child.communicate(timeout=60)
    assert sorted(part for parts in won for part in parts) == list(range(200))
    # They did compete.
    assert sum(len(parts) > 0 for parts in won) >= 2
    assert sorted(path.name for path in store._leases.directory.iterdir()) == [
        f"{part:08d}.{1 + stale}" for part in range(200)
    ]


_worker = """
import random, time
parts, steps = map(int, arguments)
store = Store(directory, {}, stale_seconds=0.5)
order = list(range(parts))
random.shuffle(order)
while True:
    steps_done = store.steps()
    unfinished = [part for part in order if steps_done.get(part) != steps]
    if not unfinished:
        break
    for part in unfinished:
        lease = store.claim(part)
        if lease is None:
            continue
        with lease:
            found = store.load(part)
            step, x = (found[0], found[1]["x"]) if found else (0, np.full(1000, part))
            while step < steps:
                step, x = step + 1, x * 31 + step
                time.sleep(0.02)
                store.save(part, step, {"x": x})
                if not lease.renew():
                    break
    time.sleep(0.01)
"""


def test_workers_that_are_killed_lose_nothing(tmp_path):
    """Three workers share the parts; one after another is killed and replaced. The results are those of a quiet run."""
    parts, steps = 24, 12
    store = Store(tmp_path, {})
    rng = random.Random(0)
    workers = [_child(_worker, tmp_path, parts, steps) for _ in range(3)]
    kills_at_work = 0
    for _ in range(6):
        time.sleep(rng.uniform(0.3, 0.6))
        k = rng.randrange(3)
        kills_at_work += workers[k].poll() is None
        workers[k].kill()
        workers[k].communicate(timeout=30)
        workers[k] = _child(_worker, tmp_path, parts, steps)
    for worker in workers:
        _, err = worker.communicate(timeout=60)
        assert worker.returncode == 0, err
    assert kills_at_work >= 3
    assert store.steps() == dict.fromkeys(range(parts), steps)
    for part in range(parts):
        x = np.full(1000, part)
        for step in range(steps):
            x = x * 31 + step
        step, arrays, _ = store.load(part)
        assert step == steps
        np.testing.assert_array_equal(arrays["x"], x)
