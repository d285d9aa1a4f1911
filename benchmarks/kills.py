"""Kills: runs whose workers are killed at random moments, again and again, and the bits that come out."""

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import contestants as c
import jax.numpy as jnp
import measure

from solvers import Grid, sde

# Workers that share a directory, by run.
WORKERS = (1, 1, 2, 4)
KILLS, LONGEST_LIFE = 60, 4.0

# A run of seconds, in segments of a fraction of one.
PATHS, STEPS, SEGMENT = 40_000, 1 << 15, 1 << 10


def kills(quick: bool) -> str:
    """Runs of 1, 2 and 4 workers under SIGKILL until enough have died, against a run left alone."""
    steps, wanted = (STEPS >> 3, 3) if quick else (STEPS, KILLS)
    alone, _ = _run(1, steps, 0.0, 0)
    rows, total, turn = [], 0, 0
    while total < wanted or turn < len(WORKERS[: 1 if quick else None]):
        workers = WORKERS[turn % len(WORKERS)]
        bits, killed = _run(workers, steps, LONGEST_LIFE, turn)
        rows.append([turn + 1, workers, killed, "equal" if bits == alone else "**differ**"])
        total, turn = total + killed, turn + 1
    head = (
        f"f = 1 + x², Euler-Maruyama, {PATHS:,} paths, {steps:,} steps, moments and a histogram; a checkpoint after "
        f"every segment of {SEGMENT:,} steps. Each worker is a process that is killed by SIGKILL after a random time "
        f"of work below {LONGEST_LIFE:g} s and replaced by another, until one comes to the end. Final states and "
        f"observables are compared with those of a run that nobody disturbs. {total} kills in all."
    )
    return head + "\n\n" + measure.table(("run", "workers", "killed", "bits"), rows)


def _run(workers: int, steps: int, longest: float, seed: int) -> tuple[str, int]:
    """What a run ended with, and how many of its workers were killed at work; none if `longest` is 0."""
    chance, killed = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as directory:
        at_work = {_worker(directory, steps): None for _ in range(workers)}
        while True:
            for worker, end in list(at_work.items()):
                if end is None and worker.stdout.readline() != "":
                    at_work[worker] = time.monotonic() + chance.uniform(0, longest) if longest else float("inf")
                elif worker.poll() is not None:
                    out = worker.stdout.read()
                    assert worker.returncode == 0, f"a worker ended with {worker.returncode}"
                    for other in at_work:
                        other.kill()
                        other.wait()
                    return out.split()[-1], killed
                elif end is not None and time.monotonic() > end:
                    worker.kill()
                    del at_work[worker]
                    # It may have come to the end just before.
                    if worker.wait() == -signal.SIGKILL:
                        killed += 1
                        at_work[_worker(directory, steps)] = None
                    else:
                        return worker.stdout.read().split()[-1], killed
            time.sleep(0.02)


def _worker(directory: str, steps: int) -> subprocess.Popen:
    command = [sys.executable, str(measure.HERE / "sde.py"), "--probe", "killed", directory, str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_probe(directory: str, steps: str) -> str:
    """The work of one worker; a line when it begins."""
    from solvers.sde import run

    run._checkpoint_seconds = 0.0
    observe = {"x": sde.Moments(), "p": sde.Histogram(Grid.uniform((-4, 4, 64)))}
    x0 = jnp.zeros(1, jnp.float32)
    print("began", flush=True)
    out = sde.simulate(
        c.LINE.model(),
        c.LINE.method(),
        x0,
        int(steps) * c.DT,
        c.DT,
        key=1,
        paths=PATHS,
        observe=observe,
        every=16,
        segment=SEGMENT,
        checkpoint=Path(directory) / "run",
    )
    digest = hashlib.sha256(out.final.tobytes())
    for part in (out["x"].mean, out["x"].cov, out["x"].sem, out["p"].mass):
        digest.update(part.tobytes())
    return digest.hexdigest()


PROBES = {"killed": killed_probe}
