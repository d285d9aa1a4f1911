"""Speed: throughput against others, the price of observables, small ensembles, compile time and two cores."""

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import contestants as c
import jax
import jax.numpy as jnp
import measure
import numpy as np

from solvers import Grid, sde
from solvers.sde import random

# Standard errors by which a second moment may be off, out of some fifty comparisons.
WRONG_LAW = 4.5


def throughput(quick: bool) -> str:
    """Rates of everyone on every problem, and ratios against the targets."""
    problems, paths = ([c.LINE], 10_000) if quick else (c.PROBLEMS, c.PATHS)
    others = [k for k in c.CONTESTANTS if k != c.OURS]
    rates, ratios, laws = [], [], []
    for p in problems:
        with jax.enable_x64(p.dtype == np.float64):
            r = _compete(p, paths, quick)
        rates.append([p.name, *(measure.rate_text(r.rates[k]) if k in r.rates else "-" for k in c.CONTESTANTS)])
        rates[-1] += [r.steps, f"{1000 * r.short:.0f}", *(f"{r.firsts[k]:.1f}" for k in (c.OURS, c.UBP, c.NAIVE))]
        ratios.append([p.name, *(_against(r.rates, k, p.targets.get(k)) for k in others)])
        laws.append([p.name, *(f"{r.off[k]:+.1f}" if k in r.off else "-" for k in c.CONTESTANTS)])
        print(measure.table(rates[-1], []), measure.table(("", *others), ratios[-1:]), sep="\n", flush=True)
    extra = ("steps", "short call, ms", *(f"first: {k}" for k in (c.OURS, c.UBP, c.NAIVE)))
    return "\n\n".join(
        [
            f"{paths:,} paths in steps of 2⁻⁷, M path-steps per CPU-second of one core: median (best) of rounds in "
            f"turns. `simulate` streams the mean and variance of |x|² at every {c.EVERY} steps, and its whole call "
            f"counts, of so many steps; a short call is a warm one of {c.TREE_STEPS} steps. The others stream nothing. "
            "diffrax has `SaveAt(t1=True)`, `ForwardMode` and constant steps: UBP is `vmap` over paths with "
            "`UnsafeBrownianPath`; one state is UBP with all paths as one state; tree is `vmap` with "
            f"`VirtualBrownianTree` over a short run of {c.TREE_STEPS} steps, which flatters it. naive is `lax.scan` "
            "with `jax.random.normal`. First calls, compilation included, in CPU-seconds.",
            measure.table(("", *c.CONTESTANTS, *extra), rates),
            "Ratio of `simulate` to the others, median over rounds:",
            measure.table(("", *others), ratios),
            f"Is it the right law? E|x|² after {c.TREE_STEPS} steps, in standard errors from the scheme's own closed "
            f"form (1-D and quadratic) or from NumPy's; beyond {WRONG_LAW} a rate would not count:",
            measure.table(("", *c.CONTESTANTS), laws),
        ]
    )


@dataclass
class _Race:
    """What contestants did on one problem: rates, our steps and short call, first calls, and errors of the law."""

    rates: dict[str, list[float]]
    steps: int
    short: float
    firsts: dict[str, float]
    off: dict[str, float]


def _compete(p: c.Problem, paths: int, quick: bool) -> _Race:
    rounds, budget, our_budget = (2, 0.1, 0.3) if quick else (5, 0.5, 2.0)
    made = {k: make(p, paths) for k, make in c.CONTESTANTS.items()}
    runs = {k: run for k, run in made.items() if run is not None}
    firsts = {k: measure.cpu_seconds(run, c.TREE_STEPS, 0) for k, run in runs.items()}
    short = min(measure.cpu_seconds(runs[c.OURS], c.TREE_STEPS, k) for k in range(3))
    off = _law_errors(p, runs)
    for k in [k for k in off if abs(off[k]) > WRONG_LAW]:
        print(f"{k} has the wrong law on {p.name}: {off[k]:.1f} standard errors; its rate does not count", flush=True)
        del runs[k]
    limits = {c.OURS: (our_budget, 1 << 20), c.TREE: (budget, c.TREE_STEPS)}
    steps = {k: measure.calibrated(run, *limits.get(k, (budget, 1 << 20))) for k, run in runs.items()}
    rates = measure.rates({k: (run, steps[k], paths) for k, run in runs.items()}, rounds)
    return _Race(rates, steps.get(c.OURS, 0), short, firsts, off)


def _law_errors(p: c.Problem, runs: dict[str, Callable]) -> dict[str, float]:
    def second(run):
        r2 = np.sum(np.asarray(run(c.TREE_STEPS, 7), np.float64) ** 2, axis=1)
        return r2.mean(), r2.std() / math.sqrt(len(r2))

    found = {k: second(run) for k, run in runs.items()}
    if p.exact is not None:
        return {k: (mean - p.exact(c.TREE_STEPS)) / error for k, (mean, error) in found.items()}
    reference, its_error = found.pop(c.NUMPY)
    return {k: (mean - reference) / math.hypot(error, its_error) for k, (mean, error) in found.items()}


def _against(found: dict, other: str, target: float | None) -> str:
    if c.OURS not in found or other not in found:
        return "-"
    return measure.verdict(measure.ratio(found[c.OURS], found[other]), target)


def streaming(quick: bool) -> str:
    """What observables cost, and first passages."""
    both = {"x": sde.Moments(), "law": sde.Histogram(Grid.uniform((-4, 4, 64)))}
    runs = {"nothing observed": c.library(c.LINE, c.PATHS, observe={}, every=1)}
    for every in (16,) if quick else (1, 4, 16):
        runs[f"moments at every {every}"] = c.library(c.LINE, c.PATHS, {"x": both["x"]}, every)
        runs[f"moments and histogram at every {every}"] = c.library(c.LINE, c.PATHS, both, every)
    budget, rounds = (0.3, 1) if quick else (1.5, 5)
    work = {k: (run, measure.calibrated(run, budget, 1 << 15), c.PATHS) for k, run in runs.items()}
    # Short and long ones: the long ones are watched from inside the loop of many steps.
    for how in ("with bridges", "interpolated"):
        passage = sde.FirstPassage(inside_one, bridge=how == "with bridges")
        for steps in (1 << 10,) if quick else (1 << 11, 1 << 15):
            run = c.library(c.LINE, c.PATHS, {"exit": passage}, 1)
            run(c.TREE_STEPS, 0)
            work[f"first passage of |x| = 1, {how}, {steps:,} steps"] = run, steps, c.PATHS
    found = measure.rates(work, rounds)
    plain = found["nothing observed"]
    rows = []
    for k, values in found.items():
        target = 25 if "passage" in k else 15 if k.endswith("every 16") else None
        more = 100 * (measure.ratio(plain, values) - 1)
        rows.append([k, measure.rate_text(values), f"{more:+.0f} %", _at_most(more, target)])
    head = (
        "f = 1 + x², Euler-Maruyama, 100,000 paths, float32; moments are mean and covariance, the histogram has 64 "
        "cells. Whole calls, M path-steps per CPU-second."
    )
    return head + "\n\n" + measure.table(("", "rate", "more time", "at most"), rows)


def _at_most(reached: float, target: float | None) -> str:
    return "" if target is None else f"{target} %: {'pass' if reached <= target else '**fail**'}"


def inside_one(x):
    return 1 - x @ x


def ensembles(quick: bool) -> str:
    """How small an ensemble may be."""
    sizes = (16, 256, 1000, 10_000, 100_000, 1_000_000)
    sizes = (256, 100_000) if quick else sizes
    budget, rounds = (0.3, 1) if quick else (1.5, 5)
    runs = {n: c.library(c.LINE, n) for n in sizes}
    work = {n: (run, measure.calibrated(run, budget), n) for n, run in runs.items()}
    found = measure.rates(work, rounds)
    rows = []
    for n in sizes:
        share = measure.ratio(found[n], found[100_000])
        target = {256: 0.8}.get(n)
        passed = "" if target is None else f" (target {target}: {'pass' if share >= target else '**fail**'})"
        rows.append([f"{n:,}", measure.rate_text(found[n]), f"{share:.2f}{passed}", work[n][1]])
    head = (
        f"f = 1 + x², Euler-Maruyama, float32, moments at every {c.EVERY} steps; whole calls, M path-steps per "
        "CPU-second."
    )
    return head + "\n\n" + measure.table(("paths", "rate", "share of the rate at 100,000", "steps"), rows)


# The call of `simulate` takes as many times more steps than the loops, so that what surrounds the steps counts little.
LONGER = 16


def budget(quick: bool) -> str:
    """What a step is made of: its parts alone, each a loop over blocks of paths as in `simulate`."""
    rows, n, groups = [], 1 << 14, 50 if quick else 1000
    for dtype in (np.float32, np.float64):
        size = random.group_size(dtype)
        with jax.enable_x64(True):
            parts = _parts_of_a_step(dtype, n, groups)
            times = {k: measure.cpu_seconds(run) for k, run in parts.items()}
            for _ in range(1 if quick else 7):
                times = {k: min(times[k], measure.cpu_seconds(run)) for k, run in parts.items()}
        times["all"] /= LONGER
        rows.append([np.dtype(dtype).name, *(f"{1e9 * t / (n * groups * size):.2f}" for t in times.values())])
    head = (
        "Nanoseconds of one core for each number or step, f = 1 + x² in one dimension under Euler-Maruyama: the random "
        "words of Philox4x32-10; normal numbers made of them; the same written to memory, for steps that are taken one "
        "at a time; the step with numbers given; and all in one loop of many steps, in a call of `simulate`."
    )
    table = measure.table(("", "words", "normal numbers", "and in memory", "step alone", "all"), rows)
    return f"{head}\n\n{table}\n\n{LIMITS}"


LIMITS = """What this says of the targets that are missed, and what was tried (rates in M steps per CPU-second; an Intel
Xeon of 2 GHz with AVX-512 and many others on the machine, where it is not said otherwise):

- One dimension is as fast as its random numbers and its step together. Ten rounds of Philox are 60 vector instructions
  for 32 words. Words in 64-bit lanes save the packing of every round (kept). Keys of the rounds, and the half of the
  first two rounds that is the same for all paths, are scalars: 415 -> 454 (kept). Which steps of a stride are wanted
  is carried as masks, or the compiler branches at every step: 454 -> 497, as fast as without the question (kept). 1,563
  instructions for 16 steps of 16 paths became 1,312, 1,000 of them arithmetic. A loop without the engine, its key known
  to the compiler, does 498 with this generator, 564 with 13 rounds of Threefry, which draws other numbers. Strides of
  32 steps run out of registers: 142; of 8: 388. In float64 strides of 16 do: 62, of 8: 88, of 4: 90 (kept).
- A state or a group of numbers of more than 64 bits a path has to pass through 64-bit lanes to become one array, and
  several arrays would each compute everything: d = 3 and 4 pay for that. Numbers of steps that are taken one at a time
  wait as the words that they are made of, which are in such lanes already: 1.4 ns a number, and 0.75 ns for the two
  transforms of a group, where the numbers themselves took 3.7 ns (kept). As two arrays of complex numbers, each with
  words of its own: 3.8 ns. Parts of an array are not to be taken apart where the compiler sees that they stay the same
  in a loop: it did so ahead of the loop, at the cost of a transform for each part. Words must not be read after the
  loop that draws the next ones might begin: each turn copied them twice. Together: moments at every step 82 -> 89,
  d = 10 12.2 -> 13.5 in calls of 128 steps. Blocks of a quarter of the paths are slower: 11 -> 7.5 in calls of 64.
- A linear process in its eigenvectors takes ten numbers a step in d = 10: 8.5 ns at least on the EPYC, 44 times
  diffrax.
- A first passage inside the loop needs the level, the noise and an exponential at every step; to share parts of them
  with the step itself would be faster, and would round the paths elsewhere.
- 256 paths are one block, and a turn of its loop takes 4,096 path-steps: 19 µs on the Xeon, where 14 would be its share
  at 100,000 paths. The other 5 µs are the loop's own; more steps in a turn do not fit in the registers.
- Compilation is that of the loop of strides, 16 steps written out: 1.7 s on the EPYC, 4 s on the Xeon, where diffrax
  takes 2.3 and 5. Without the compiler's fusion emitters it takes 25 to 50 % less, and the loop runs five to ten times
  as long; code in one piece takes 13 % less; levels of optimisation and expensive passes change nothing. A loop of
  single steps compiles in a third of the time and runs at a fifth of the rate. Small ensembles that are sampled within
  a stride compiled both: 5.1 -> 3.8 s and 8.4 -> 6.3 s with one (kept)."""


def _parts_of_a_step(dtype: type, n: int, groups: int) -> dict[str, Callable]:
    words, path = random.key_words(1), jnp.arange(n, dtype=jnp.uint32)
    size, h, kappa = random.group_size(dtype), dtype(c.DT), dtype(c.LINE.kappa)
    x, zero = jnp.full(n, 0.1, dtype), jnp.uint32(0)

    def drawn(k):
        return random.group(words, path, k, zero, dtype)

    def bare_words(k, total):
        w = random.words_of(words, path, k, zero)
        return total ^ w[0] ^ w[1] ^ w[2] ^ w[3]

    def in_memory(k, held):
        packed, *_ = held
        pairs = [random.pair(packed, jnp.uint32(step), dtype) for step in range(0, size, 2)]
        return random.pack(random.words_of(words, path, k, zero), dtype), *pairs

    def step(x, z):
        return x - h * 2 * x + jnp.sqrt(2 * kappa * h * (1 + x * x)) * z

    def steps(k, x):
        for _ in range(size):
            x = step(x, dtype(0.3))
        return x

    loops = {
        "words": (bare_words, path),
        "normals": (lambda k, total: total + sum(drawn(k)), x),
        "memory": (in_memory, in_memory(zero, (random.pack((path,) * 4, dtype),))),
        "step": (steps, x),
    }
    runs = {}
    for name, (body, start) in loops.items():
        loop = jax.jit(
            lambda start, body=body: jax.lax.fori_loop(0, groups, lambda k, v: body(k.astype(jnp.uint32), v), start),
            compiler_options={"xla_cpu_prefer_vector_width": 512},
        )
        runs[name] = lambda loop=loop, start=start: jax.block_until_ready(loop(start))
    model, method = c.LINE.model(), c.LINE.method()
    t1 = LONGER * groups * size * c.DT
    runs["all"] = lambda: sde.simulate(model, method, jnp.zeros(1, dtype), t1, c.DT, key=1, paths=n)
    return runs


COMPILED = {"1-D": (c.LINE, 1.5), "ring": (c.RING, 1.5), "d = 10": (c.QUADRATIC, 1.5)}


def compilation(quick: bool) -> str:
    """First calls less warm calls, each in a process of its own."""
    rows = []
    contestants = (c.OURS, c.UBP)
    for name, (_, target) in list(COMPILED.items())[: 1 if quick else None]:
        times = {k: [_child("compile", name, k) for _ in range(1 if quick else 3)] for k in contestants}
        ours, theirs = (statistics.median(t["seconds"] for t in times[k]) for k in (c.OURS, c.UBP))
        passed = "pass" if ours <= target else "**fail**"
        rows.append([name, f"{ours:.2f}", f"{target:g}: {passed}", f"{theirs:.2f}", f"{theirs / ours:.1f}x"])
    head = "CPU-seconds of the first call less those of a warm one, each in a fresh process; median of processes."
    return head + "\n\n" + measure.table(("", c.OURS, "target", c.UBP, "diffrax / simulate"), rows)


def compile_probe(problem: str, contestant: str) -> dict:
    p, _ = COMPILED[problem]
    jnp.zeros(1).block_until_ready()
    run = c.CONTESTANTS[contestant](p, 10_000)
    first = measure.cpu_seconds(run, c.TREE_STEPS, 1)
    warm = min(measure.cpu_seconds(run, c.TREE_STEPS, 2) for _ in range(3))
    return {"seconds": first - warm}


def cores(quick: bool) -> str:
    """Wall-clock speed-up of two cores, and whether the bits are the same."""
    every_core = sorted(os.sched_getaffinity(0) | set(range(os.cpu_count() or 1)))[:2]
    if len(every_core) < 2:
        return "This machine has one core."
    layouts = {"one core": (1, 1), "two cores, one device": (2, 1), "two cores, two devices": (2, 2)}
    before = os.getloadavg()[0]
    if quick:
        del layouts["two cores, one device"]
    found: dict[str, list[dict]] = {k: [] for k in layouts}
    for _ in range(1 if quick else 4):
        for k, (count, devices) in layouts.items():
            found[k].append(_child("cores", str(count), str(devices), str(2048 if quick else 8192)))
    first = found["one core"]
    rows = []
    for k, runs in found.items():
        best, wall = min(r["wall"] for r in runs), statistics.median(r["wall"] for r in runs)
        speed = min(r["wall"] for r in first) / best
        bits = {r["sha256"] for r in [*runs, *first]}
        used = max(r["cpu"] / r["wall"] for r in runs)
        equal = "equal" if len(bits) == 1 else "**differ**"
        rows.append([k, f"{best:.2f} ({wall:.2f})", f"{speed:.2f}x", f"{used:.2f}", equal])
    head = (
        f"f = 1 + x², 100,000 paths, float32, wall-clock seconds: best (median) of processes in turns. The machine's "
        f"load was {before:.1f} before and {os.getloadavg()[0]:.1f} after, its two cores included: above 0.5 or so "
        "speed-ups say more about the others on the machine than about this library. Target 1.8x with equal bits."
    )
    header = ("", "seconds", "speed-up", "cores used at best", "bits")
    return head + "\n\n" + measure.table(header, rows)


def cores_probe(count: str, devices: str, steps: str) -> dict:
    mesh = jax.make_mesh((int(devices),), ("paths",)) if int(devices) > 1 else None
    model, method = c.LINE.model(), c.LINE.method()
    x0 = jnp.zeros(1, jnp.float32)

    def run():
        return sde.simulate(model, method, x0, int(steps) * c.DT, c.DT, key=1, paths=c.PATHS, mesh=mesh).final

    run()
    turns = []
    for _ in range(3):
        cpu, wall = time.process_time(), time.perf_counter()
        final = run()
        turns.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = min(turns)
    return {"wall": wall, "cpu": cpu, "sha256": hashlib.sha256(final.tobytes()).hexdigest()}


def _child(probe: str, *args: str) -> dict:
    """The result of a probe in a fresh process, which compiles anew and may use other cores."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if probe == "cores":
        environment["JAX_NUM_CPU_DEVICES"] = args[1]
    command = [sys.executable, str(measure.HERE / "sde.py"), "--probe", probe, *args]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


PROBES = {"compile": compile_probe, "cores": cores_probe}
