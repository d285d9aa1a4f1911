"""Laws: the bias of samplers per gradient, tests of the random numbers, and the engine's law over 10⁹ path-steps."""

import math
import statistics
import time
from collections.abc import Callable

import contestants as c
import jax
import jax.numpy as jnp
import matplotlib
import measure
import numpy as np
from scipy import stats

import sgdsde as sg
from solvers import sde
from solvers.sde import random

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Sampling: f = 1 + x², whose invariant law f^(-1 - 1/κ) is Student's.
KAPPA = 0.2
EXACT = {"E x²": KAPPA / (2 - KAPPA), "P(|x|>1)": 2 * stats.t.sf(math.sqrt(1 + 2 / KAPPA), 1 + 2 / KAPPA)}
WANTED = 0.003

# Time on the clock τ, with dτ = f dt, per unit of physical time: E f = 1 + E x².
CLOCK = 1 + EXACT["E x²"]

# Method: what it is, whether `dt` is on the clock τ, colour and marker. The colours are Okabe and Ito's.
SAMPLERS = {
    "Euler-Maruyama": (sde.EulerMaruyama(), False, "#0072B2", "o"),
    "Milstein": (sde.Milstein(), False, "#E69F00", "s"),
    "TimeChanged(EulerMaruyama)": (sde.TimeChanged(sde.EulerMaruyama()), True, "#009E73", "^"),
    "TimeChanged(LeimkuhlerMatthews)": (sde.TimeChanged(sde.LeimkuhlerMatthews()), True, "#D55E00", "D"),
    "Lamperti": (sde.Lamperti(), False, "#CC79A7", "v"),
}
LONGEST, SHORTEST = 0.8, 0.0016
BURN_IN = 8.0


def features(t, x):
    return jnp.stack([x[0] * x[0], (jnp.abs(x[0]) > 1).astype(x.dtype)])


def sampling(quick: bool) -> str:
    """Bias of the invariant law of five methods, and the gradients that 0.3 % takes."""
    found = {k: _ladder(SAMPLERS[k][0], quick) for k in list(SAMPLERS)[: 1 if quick else None]}
    shown = [h for h in (0.4, 0.2, 0.1, 0.05) if any(h in runs for runs in found.values())]
    biases, gradients = [], []
    for k, runs in found.items():
        biases.append([k, *(_cell(runs[h]) if h in runs else "-" for h in shown)])
        needed = [_gradients(runs, SAMPLERS[k][1], j) for j in range(len(EXACT))]
        gradients.append((k, needed, measure.significant(runs["rate"] / 1e6), measure.significant(_time(k, 0.1) / 0.1)))
    base = gradients[0][1]
    rows = [[k, *(_compared(n, b) for n, b in zip(needed, base, strict=True)), *rest] for k, needed, *rest in gradients]
    _figure(found)
    names = list(EXACT)
    return "\n\n".join(
        [
            f"f = 1 + x² under loss-proportional noise, κ = {KAPPA}. One gradient a step for every method. Relative "
            f"bias of {names[0]} / {names[1]} in %, ± one standard error. Each run is {_paths(quick):,} paths over "
            f"{_duration(quick):g} units of the method's clock after {BURN_IN:g} of burn-in, float32. For "
            "`TimeChanged` dt is a step of τ, dτ = f dt: a gradient then stands for "
            f"{1 / CLOCK:.2f} dt of physical time on average.",
            measure.table(("", *(f"dt = {h:g}" for h in shown)), biases),
            f"Gradients per unit of physical time for a bias of {100 * WANTED:g} % (and how many times fewer than "
            "Euler-Maruyama), by interpolation between runs. A bias counts as too large if it is so by two standard "
            "errors; ≤ where the longest step that was tried is good enough, > where the shortest is not. "
            f"Target for `TimeChanged(LeimkuhlerMatthews)`: 100 times fewer for {names[0]}. Steps are in M per "
            "CPU-second, samples at every 16.",
            measure.table(("", *names, "steps", "physical time per gradient / dt"), rows),
            "![Bias against gradients per unit of physical time](sampling.png)",
        ]
    )


def _duration(quick: bool) -> float:
    return 16.0 if quick else 256.0


def _paths(quick: bool) -> int:
    return 10_000 if quick else c.PATHS


def _time(name: str, h: float) -> float:
    """Physical time that one gradient stands for."""
    return h / CLOCK if SAMPLERS[name][1] else h


def _ladder(method: sde.AbstractMethod, quick: bool) -> dict:
    """Biases and their errors by dt, from long steps down to those that are good twice in a row; and the rate."""
    model = sg.SGD(c.parabola, sg.noise.LossProportional(KAPPA / c.LEARNING_RATE), c.LEARNING_RATE)
    runs: dict = {}

    def run(h, time_units, seed=3, every=None):
        steps, before = round(time_units / h), round(BURN_IN / h)
        return sde.simulate(
            model,
            method,
            jnp.zeros(1, jnp.float32),
            (before + steps) * h,
            h,
            key=seed,
            paths=_paths(quick),
            observe={"m": sde.Moments(features)},
            burn_in=before * h,
            every=every or max(1, round(0.1 / h)),
            throw=False,
        )

    h, good = LONGEST, 0
    while h >= (0.1 if quick else SHORTEST) and good < 2:
        moments = run(h, _duration(quick))["m"]
        truth = np.array(list(EXACT.values()))
        runs[h] = moments.mean / truth - 1, moments.sem / truth
        good = good + 1 if np.all(np.abs(runs[h][0]) + runs[h][1] < WANTED) else 0
        h = 0.5 * h
    turns = [_rate(run, quick) for _ in range(1 if quick else 3)]
    return runs | {"rate": statistics.median(turns)}


def _rate(run: Callable, quick: bool) -> float:
    h, units = 0.05, 50.0 if quick else 200.0
    run(h, 1.0, every=16)
    began = time.process_time()
    done = run(h, units, every=16)
    return done.steps * len(done.final) / (time.process_time() - began)


def _cell(run: tuple) -> str:
    return " / ".join(f"{100 * b:+.2f} ± {100 * e:.2f}" for b, e in zip(*run, strict=True))


def _gradients(runs: dict, on_clock: bool, j: int) -> tuple[float, str]:
    """Gradients per unit of physical time at which the j-th bias falls to what is wanted."""
    points = sorted((h, abs(bias[j]), error[j]) for h, (bias, error) in ((h, runs[h]) for h in runs if h != "rate"))
    scale = CLOCK if on_clock else 1.0
    for (h, bias, error), longer in zip(points, [*points[1:], None], strict=True):
        if bias - 2 * error > WANTED:
            return scale / h, "> "
        if longer is None:
            return scale / h, "≤ "
        if longer[1] - 2 * longer[2] > WANTED:
            # A bias smaller than its error is known to be no larger than that.
            found = min(max(bias, error), WANTED)
            share = math.log(WANTED / found) / math.log(longer[1] / found)
            return scale / (h * (longer[0] / h) ** share), ""
    raise AssertionError("a ladder has a shortest and a longest step")


def _compared(needed: tuple[float, str], base: tuple[float, str]) -> str:
    return f"{needed[1]}{measure.significant(needed[0])} ({measure.significant(base[0] / needed[0])}x)"


def _figure(found: dict) -> None:
    """Bias against gradients per unit of physical time, one panel for each statistic."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with plt.rc_context(style):
        figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.3), sharey=True, layout="constrained")
        for j, (panel, name) in enumerate(zip(panels, EXACT, strict=True)):
            for k in found:
                _, _, colour, marker = SAMPLERS[k]
                steps = sorted((h for h in found[k] if h != "rate"), reverse=True)
                x = np.array([1 / _time(k, h) for h in steps])
                bias, error = (np.array([found[k][h][i][j] for h in steps]) for i in (0, 1))
                known = np.abs(bias) > 2 * error
                panel.plot(x, np.maximum(np.abs(bias), error), color=colour, lw=1.2, zorder=2)
                for mask, face in ((known, colour), (~known, "white")):
                    size = np.maximum(np.abs(bias), error)
                    panel.errorbar(
                        x[mask],
                        size[mask],
                        yerr=error[mask],
                        fmt=marker,
                        ms=4.5,
                        mfc=face,
                        mec=colour,
                        ecolor=colour,
                        elinewidth=0.8,
                        label=k if face == colour and j == 0 else None,
                        zorder=3,
                    )
            panel.axhline(WANTED, color="0.5", lw=0.8, ls="--", zorder=1)
            panel.set(xscale="log", yscale="log", ylim=(1e-4, 10), title=name, xlabel="gradients per unit of time")
        panels[0].set_ylabel("|relative bias|")
        panels[0].annotate(
            "0.3 %", (1, WANTED), (0, -3), ("axes fraction", "data"), "offset points", ha="right", va="top", color="0.4"
        )
        figure.legend(loc="outside lower center", ncols=3)
        figure.savefig(measure.HERE / "sampling.png", dpi=200)
        plt.close(figure)


# Random numbers.

BINS = 256
LARGEST_MOMENT = 8
PATHS_DRAWN = 1 << 16
TAILS = (4.0, 5.0)
P_WRONG = 1e-4


def random_numbers(quick: bool) -> str:
    """Chi-square, moments, tails and correlations of the normal numbers."""
    sections = []
    for dtype, draws in ((np.float32, 1e6 if quick else 1e9), (np.float64, 1e6 if quick else 1e8)):
        with jax.enable_x64(True):
            rows, count = _tested(dtype, int(draws))
        sections += [f"{np.dtype(dtype).name}, {count:.3g} draws:", measure.table(("", "found", "expected", "p"), rows)]
    return "\n\n".join(
        [
            "Normal numbers as `simulate` draws them, from addresses (path, step). The chi-square test has "
            f"{BINS} bins of equal probability; p is two-sided, in bold below {P_WRONG:g}.",
            *sections,
        ]
    )


def _tested(dtype: type, draws: int) -> tuple[list, int]:
    size = random.group_size(dtype)
    groups = 16 // size
    words = random.key_words(2026)

    @jax.jit
    def batch(first):
        """Bins, moments, tails and products of neighbours of 16 steps of many paths, and the first path's numbers."""
        path = jnp.arange(PATHS_DRAWN, dtype=jnp.uint32)
        drawn = [random.group(words, path, first + jnp.uint32(g), jnp.uint32(0), dtype) for g in range(groups)]
        z = jnp.stack([n for numbers in drawn for n in numbers]).astype(jnp.float64)
        other = jnp.stack([random.group(words, path, first, jnp.uint32(1), dtype)[0]]).astype(jnp.float64)
        bins = jnp.clip(jnp.floor(BINS * jax.scipy.special.ndtr(z)), 0, BINS - 1).astype(jnp.uint8)
        moments = jnp.stack([jnp.sum(z**k) for k in range(1, LARGEST_MOMENT + 1)])
        tails = jnp.stack([jnp.sum(jnp.abs(z) > a) for a in TAILS])
        pairs = {f"steps {k} apart": (z[k:], z[:-k]) for k in (1, 2, 3, 4, 8)}
        pairs |= {f"paths {k} apart": (z[:, k:], z[:, :-k]) for k in (1, 2, 64)}
        pairs |= {"components 0 and 1": (z[:1], other)}
        products = {k: (jnp.sum(a * b), jnp.sum((a * a - 1) * (b * b - 1))) for k, (a, b) in pairs.items()}
        return bins, moments, tails, products, {k: a.size for k, (a, _) in pairs.items()}

    counts, total = np.zeros(BINS, np.int64), None
    turns = max(1, round(draws / (16 * PATHS_DRAWN)))
    for turn in range(turns):
        bins, *sums = batch(jnp.uint32(turn * groups))
        counts += np.bincount(np.asarray(bins).ravel(), minlength=BINS)
        total = sums if total is None else jax.tree.map(lambda a, b: a + b, total, sums)
    moments, tails, products, sizes = jax.tree.map(np.asarray, total)
    return _rows(counts, moments, tails, products, sizes), int(counts.sum())


def _rows(counts: np.ndarray, moments: np.ndarray, tails: np.ndarray, products: dict, sizes: dict) -> list:
    n = counts.sum()
    chi2 = np.sum((counts - n / BINS) ** 2) / (n / BINS)
    rows = [
        ["chi-square", f"{chi2:.1f}", f"{BINS - 1} ± {math.sqrt(2 * BINS - 2):.0f}", _p(stats.chi2(BINS - 1), chi2)]
    ]
    even = [1.0] + [float(np.prod(np.arange(k - 1, 0, -2))) if k % 2 == 0 else 0.0 for k in range(1, 17)]
    for k, total in enumerate(moments, 1):
        error = math.sqrt((even[2 * k] - even[k] ** 2) / n)
        rows.append(
            [f"E z^{k}", f"{total / n:.6f}", f"{even[k]:g} ± {error:.1g}", _p(stats.norm(even[k], error), total / n)]
        )
    for a, seen in zip(TAILS, tails, strict=True):
        expected = 2 * stats.norm.sf(a) * n
        p = _p(stats.poisson(expected), seen)
        rows.append([f"|z| > {a:g}", f"{seen}", f"{expected:.1f} ± {math.sqrt(expected):.0f}", p])
    for k, (product, squares) in products.items():
        error = 1 / math.sqrt(sizes[k])
        for what, value in (("z", product / sizes[k]), ("z²", squares / sizes[k] / 2)):
            rows.append(
                [f"correlation of {what}, {k}", f"{value:+.2e}", f"0 ± {error:.1e}", _p(stats.norm(0, error), value)]
            )
    return rows


def _p(law, value: float) -> str:
    p = min(1.0, 2 * min(law.cdf(value), law.sf(value)))
    return f"{p:.3f}" if p > P_WRONG else f"**{p:.1e}**"


# The law of the engine.


def law(quick: bool) -> str:
    """Second moments of stationary laws of the schemes themselves, against closed forms at finite dt."""
    rows = []
    cases = (
        ("Euler-Maruyama", False, np.float32, 1e9),
        ("Milstein", True, np.float32, 1e9),
        ("Euler-Maruyama", False, np.float64, 2e8),
    )
    for name, milstein, dtype, path_steps in cases[: 1 if quick else None]:
        with jax.enable_x64(dtype == np.float64):
            moment, count = _stationary(milstein, dtype, path_steps / (50 if quick else 1))
        exact = c.parabola_moment(KAPPA, 0.1, milstein, math.inf)
        off = (moment.mean - exact) / moment.sem
        passed = "pass" if abs(off) < 4 else "**fail**"
        label = f"{name}, {np.dtype(dtype).name}"
        rows.append(
            [label, f"{count:.2g}", f"{moment.mean:.6f} ± {moment.sem:.6f}", f"{exact:.6f}", f"{off:+.2f}: {passed}"]
        )
    head = (
        f"f = 1 + x², κ = {KAPPA}, dt = 0.1. The schemes' own stationary E x² is 2κ/(4 - 4dt - 2κ) for Euler-Maruyama "
        f"and 2κ/(4 - 4dt - 2κ - 2κ²dt) for Milstein; that of the SDE is {EXACT['E x²']:.6f}. To pass, less than 4 "
        "standard errors."
    )
    header = ("", "path-steps", "found", "the scheme's own", "standard errors off")
    return head + "\n\n" + measure.table(header, rows)


def _stationary(milstein: bool, dtype: type, path_steps: float) -> tuple:
    model = sg.SGD(c.parabola, sg.noise.LossProportional(KAPPA / c.LEARNING_RATE), c.LEARNING_RATE)
    method = sde.Milstein() if milstein else sde.EulerMaruyama()
    steps, before, h = max(100, round(path_steps / c.PATHS)), 100, 0.1
    out = sde.simulate(
        model,
        method,
        jnp.zeros(1, dtype),
        (before + steps) * h,
        h,
        key=11,
        paths=c.PATHS,
        observe={"x2": sde.Moments(c.radius2)},
        burn_in=before * h,
        every=4,
    )
    return out["x2"], steps * c.PATHS
