"""Runs with checkpoints: however often they are interrupted, and by whoever they are computed, they end the same."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Diffusion, Grid, sde
from solvers.sde import ensemble, run
from solvers.sde.progress import Progress

_process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x)))
_euler = sde.EulerMaruyama()
_observe = {"x": sde.Moments(), "p": sde.Histogram(Grid.uniform((-2.0, 2.0, 9)), lambda t, x: x[:1])}


def _simulate(checkpoint=None, process=_process, method=_euler, d=1, dtype=np.float64, **changes):
    x0 = 0.5 * np.random.default_rng(0).normal(size=(1000, d)).astype(dtype)
    options = {"t1": 2.0, "dt": 0.01, "key": 5, "observe": _observe, "every": 3, "save_at": [0.5, 1.0], **changes}
    return sde.simulate(process, method, x0, checkpoint=checkpoint, **options)


def _assert_equal(a, b):
    assert a.complete
    assert np.array_equal(a.final, b.final)
    assert np.array_equal(a.xs, b.xs)
    assert np.array_equal(a["p"].mass, b["p"].mass)
    assert np.array_equal(a["x"].mean, b["x"].mean)
    assert np.array_equal(a["x"].cov, b["x"].cov)
    assert np.array_equal(a["x"].sem, b["x"].sem)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of few paths, saved after every segment."""
    monkeypatch.setattr(ensemble, "_block_sizes", (64, 256))
    monkeypatch.setattr(run, "_checkpoint_seconds", 0.0)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("case", ["isotropic", "matrix"])
@pytest.mark.slow("matrix")
def test_interruptions_at_random_points_do_not_change_the_result(case, small_blocks, monkeypatch, tmp_path):
    matrix = jnp.asarray([[0.3, 0.1], [0.0, 0.2], [0.1, 0.1]])
    process, method, d = {
        "isotropic": (_process, _euler, 1),
        "matrix": (Diffusion(lambda t, x: -x, lambda t, x: matrix * (1 + x[0])), sde.Milstein(), 3),
    }[case]
    whole = _simulate(process=process, method=method, d=d)
    random = np.random.default_rng(7)
    left = 0
    add = Progress.add

    def stops(self, path_steps):
        nonlocal left
        left -= 1
        if left == 0:
            raise _Stop
        add(self, path_steps)

    monkeypatch.setattr(Progress, "add", stops)
    interrupted = 0
    for repeat in range(40):
        directory = tmp_path / str(repeat)
        while True:
            layout = {"chunk": int(random.choice([100, 300, 5000])), "segment": int(random.choice([7, 50, 200]))}
            if random.random() < 0.5:
                layout["mesh"] = jax.make_mesh((2,), ("paths",))
            left = int(random.integers(1, 12))
            try:
                out = _simulate(directory, process=process, method=method, d=d, **layout)
            except _Stop:
                interrupted += 1
                continue
            break
        _assert_equal(out, whole)
        if interrupted >= 25:
            break
    assert interrupted >= 25


def test_a_finished_run_is_read_and_not_computed(small_blocks, monkeypatch, tmp_path):
    whole = _simulate(tmp_path)
    monkeypatch.setattr(run, "advance", lambda *_: pytest.fail("computed again"))
    _assert_equal(_simulate(tmp_path), whole)


def test_ctrl_c_returns_what_there_is(small_blocks, monkeypatch, tmp_path):
    whole = _simulate()
    add, calls = Progress.add, 0

    def stops(self, path_steps):
        nonlocal calls
        calls += 1
        if calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        add(self, path_steps)

    monkeypatch.setattr(Progress, "add", stops)
    part = _simulate(segment=20)
    assert not part.complete
    assert part.steps == 50
    assert part.final.shape == whole.final.shape
    assert part.xs.shape[:1] == (1,)
    assert np.array_equal(part.xs[0], whole.xs[0])
    assert "interrupted" in str(part)
    calls = 0
    through = _simulate(tmp_path, segment=200, chunk=256)
    assert not through.complete
    assert through.steps == 200
    assert np.array_equal(through.final, whole.final[: len(through.final)])
    assert 0 < len(through.final) < len(whole.final)
    calls = 10
    _assert_equal(_simulate(tmp_path), whole)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dt": 0.02}, r"dt: checkpoint 0\.01, this run 0\.02"),
        ({"key": 6}, r"key\[1\]: checkpoint 5, this run 6"),
        ({"t1": 3.0}, "steps: checkpoint 200, this run 300"),
        ({"every": 2}, "every: checkpoint 3, this run 2"),
        ({"dtype": np.float32}, "dtype: checkpoint 'float64', this run 'float32'"),
        ({"process": Diffusion(lambda t, x: -2 * x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x)))}, "process: checkpoint"),
        ({"method": sde.Milstein()}, "method: checkpoint 'EulerMaruyama', this run 'Milstein'"),
        ({"observe": {"x": sde.Moments(lambda t, x: 2 * x)}}, "observe.x: checkpoint"),
    ],
)
def test_another_run_is_refused(changes, text, tmp_path):
    _simulate(tmp_path, t1=2.0)
    with pytest.raises(ValueError, match=f"belongs to a different run: .*{text}"):
        _simulate(tmp_path, **changes)


def test_a_damaged_checkpoint_costs_time_and_nothing_else(small_blocks, tmp_path):
    whole = _simulate()
    _simulate(tmp_path, segment=50)
    files = sorted(tmp_path.glob("parts/*/*.ckpt"))
    newest = files[1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="damaged file"):
        out = _simulate(tmp_path)
    _assert_equal(out, whole)


def test_a_full_disk_ends_the_run_and_loses_nothing(small_blocks, monkeypatch, tmp_path):
    whole = _simulate()
    fsync, left = os.fsync, 15

    def full(file):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"`checkpoint`: step \d+ of part \d+ could not be saved.*No space left"):
        _simulate(tmp_path, segment=20)
    assert list(tmp_path.glob("parts/*/*.ckpt"))
    assert list((tmp_path / "tmp").iterdir()) == []
    monkeypatch.setattr(os, "fsync", fsync)
    _assert_equal(_simulate(tmp_path), whole)


_script = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
if len(sys.argv) > 3:
    jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
from solvers import Diffusion, Grid, sde
from solvers.sde import ensemble, run
ensemble._block_sizes, run._checkpoint_seconds = (64, 256), 0.05
process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(0.5 * (1 + x @ x)))
x0 = 0.5 * np.random.default_rng(0).normal(size=(1000, 1))
observe = {"x": sde.Moments(), "p": sde.Histogram(Grid.uniform((-2.0, 2.0, 9)))}
mesh = jax.make_mesh((jax.device_count(),), ("paths",)) if len(sys.argv) > 3 else None
print("began", flush=True)
out = sde.simulate(process, sde.EulerMaruyama(), x0, t1=float(sys.argv[2]), dt=0.01, key=5, observe=observe, every=50,
                   checkpoint=sys.argv[1], segment=500, mesh=mesh)
print(json.dumps([out.complete, out.final.tolist(), out["p"].mass.tolist(), float(out["x"].mean[0])]), flush=True)
"""


def _worker(directory, t1, *distributed):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", _script, str(directory), str(t1), *map(str, distributed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2])


def _outcome(worker):
    out, _ = worker.communicate(timeout=600)
    assert worker.returncode == 0
    return json.loads(out.splitlines()[-1])


def _kill_when_it_has_saved(worker, directory, number):
    deadline = time.monotonic() + 600
    while not list(Path(directory).glob("parts/*/*.ckpt")) and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    worker.send_signal(number)
    worker.communicate(timeout=600)
    return worker.returncode


def test_killed_and_terminated_and_shared_runs_end_the_same(tmp_path):
    t1 = 500
    alone = _outcome(_worker(tmp_path / "alone", t1))
    assert alone[0]
    directory = tmp_path / "killed"
    assert _kill_when_it_has_saved(_worker(directory, t1), directory, signal.SIGKILL) == -signal.SIGKILL
    assert _kill_when_it_has_saved(_worker(directory, t1), directory, signal.SIGTERM) in (-signal.SIGTERM, 0)
    together = [_worker(directory, t1) for _ in range(4)]
    assert [_outcome(w) for w in together] == [alone] * 4


def test_processes_of_one_distributed_program_share_a_run(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    workers = [_worker(tmp_path / "shared", 100, address, 2, i) for i in range(2)]
    alone = _outcome(_worker(tmp_path / "alone", 100))
    assert [_outcome(w) for w in workers] == [alone, alone]
