"""The sections of the Fokker-Planck benchmark: each returns its part of the report."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np
import peers
import scipy.linalg
from scipy.special import ive

from solvers import Density, Diffusion, Grid, fokker_planck
from solvers.fokker_planck.chebyshev_steps import ChebyshevSteps, chebyshev_sum
from solvers.fokker_planck.gmres import gmres
from solvers.fokker_planck.jumps import generator_jumps
from solvers.fokker_planck.multigrid import Multigrid
from solvers.fokker_planck.tridiagonal import blocks_for, factor, folded, solve

jax.config.update("jax_enable_x64", True)

# The error in time that all are compared at, as a sum of |mass error|, and the step of implicit Euler.
ERROR, STEP = 8e-4, 1 / 64


def well(d: int) -> Diffusion:
    """The problem of `peers`."""
    return gibbs(lambda x: potential(x, d), peers.TEMPERATURE)


def potential(x, d):
    rest = 0.5 * jnp.sum(x[1:] ** 2) + (peers.TILT * x[0] * x[1] if d > 1 else 0.0)
    return (x[0] ** 2 - 1) ** 2 / 4 + rest


def gibbs(f: Callable, temperature: float) -> Diffusion:
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * jnp.asarray(temperature)))


def box(n: int, d: int) -> Grid:
    return Grid.uniform(*[(-peers.HALF, peers.HALF, n)] * d)


def started(n: int, d: int) -> tuple[fokker_planck.Generator, Density]:
    grid = box(n, d)
    centre = jnp.asarray(peers.CENTRE[:d])
    p0 = Density.from_function(grid, lambda x: jnp.exp(-jnp.sum((x - centre) ** 2) / (2 * peers.WIDTH**2)))
    return fokker_planck.assemble(well(d), grid), p0


def best(run: Callable, repeats: int = 5) -> float:
    """CPU-seconds, the least of several."""
    return min(measure.cpu_seconds(run) for _ in range(repeats))


def turns(ours: Callable, theirs: Callable, repeats: int, ours_each: int = 3) -> tuple[float, float]:
    """The least CPU-seconds of both, taken in turns."""
    pairs = [(best(ours, ours_each), measure.cpu_seconds(theirs)) for _ in range(repeats)]
    return min(p[0] for p in pairs), min(p[1] for p in pairs)


def transient(quick: bool) -> str:
    rows = []
    for n in (32,) if quick else (128, 256):
        generator, p0 = started(n, 2)
        began = time.process_time()
        law = fokker_planck.evolve(generator, p0, [1.0], rtol=ERROR).densities[0].mass
        first = time.process_time() - began
        exact = fokker_planck.evolve(generator, p0, [1.0], rtol=1e-11).densities[0].mass
        our_error = np.abs(law - exact).sum()
        model = peers.FiPy(n, 2, 1e-6, "LinearBicgstabSolver")
        reference = model.exact(1.0)
        error_of = lambda k, m=model, r=reference: np.abs(m.crank_nicolson(1.0, k) - r).sum()  # noqa: E731
        # The error falls with the square of the number of steps.
        steps = int(np.ceil(12 * np.sqrt(error_of(12) / ERROR)))
        while (error := error_of(steps)) > ERROR:
            steps += 1
        ours, theirs = turns(
            lambda g=generator, p=p0: fokker_planck.evolve(g, p, [1.0], rtol=ERROR),
            lambda m=model, k=steps: m.crank_nicolson(1.0, k),
            1 if quick else 3,
        )
        rows.append(
            [f"{n}²", f"{1e3 * ours:.1f} ms", f"{our_error:.1e}", f"{first:.2f} s", f"{theirs:.2f} s", steps + 1,
             f"{error:.1e}", measure.verdict(theirs / ours, 100)]
        )  # fmt: skip
    head = ("cells", "`evolve`", "its error", "first call", "FiPy", "its solves", "its error", "ratio")
    return (
        "From the start to t = 1. `evolve(..., rtol=8e-4)` is the whole call, with a bound on its error; FiPy takes "
        "Crank-Nicolson steps by hand after two implicit Euler steps, as few as reach 8e-4 against its own matrix's "
        "exponential (which its user would not know), with its fastest solver to 1e-6.\n\n" + measure.table(head, rows)
    )


def implicit_step(quick: bool) -> str:
    rows, solvers = [], ("LinearGMRESSolver", "LinearBicgstabSolver", "LinearCGSSolver")
    models = {s: peers.FiPy(32 if quick else 128, 2, 1e-8, s) for s in solvers}
    times = {s: min(_fipy_step(m) for _ in range(3)) for s, m in models.items()}
    solver = min(times, key=lambda s: times[s])
    for n, d, target in ((32, 2, 5),) if quick else ((128, 2, 5), (256, 2, 5), (64, 3, 12)):
        generator, p0 = started(n, d)
        ours, terms = resolvent(generator, p0, STEP)
        left = np.asarray(ours()) - STEP * _backward(generator, np.asarray(ours()))
        error = np.max(np.abs(left - start_ratio(generator, p0))) / np.max(np.abs(start_ratio(generator, p0)))
        model = peers.FiPy(n, d, 1e-8, solver)
        model.step(STEP)
        theirs = min(_fipy_step(model) for _ in range(1 if quick else 3))
        mine = best(lambda f=ours: jax.block_until_ready(f()), 9)
        rows.append(
            [f"{n}{'²³'[d - 2]}", f"{1e3 * mine:.1f} ms", terms, f"{error:.0e}", f"{1e3 * theirs:.0f} ms",
             measure.verdict(theirs / mine, target)]
        )  # fmt: skip
    head = ("cells", "ours", "products", "residual", "FiPy", "ratio")
    return (
        "(1 - A/64) m' = m, unsplit, to 1e-8: the kernel of `evolve` with the Chebyshev coefficients of 1 / (1 + y) "
        "in place of those of e^(-y), against FiPy's "
        f"{solver}, its fastest at 128²; its assembly is in its time, since it is in its every step.\n\n"
        + measure.table(head, rows)
    )


def _fipy_step(model: peers.FiPy) -> float:
    model.reset()
    return measure.cpu_seconds(model.step, STEP)


def start_ratio(generator, p0):
    return (p0.mass.ravel() / ChebyshevSteps(generator, 1e-8).law).reshape(generator.grid.shape)


def _backward(generator, u):
    return (generator.matrix.T @ u.ravel()).reshape(u.shape)


def resolvent(generator, p0, tau: float) -> tuple[Callable, int]:
    """A function that takes one implicit step to 1e-8, and its number of products."""
    stepper = ChebyshevSteps(generator, 1e-8)
    z = tau * stepper.fastest / 2
    # 1 / (1 + z - z x) = Σ' 2 r^k T_k(x) / sqrt(1 + 2 z).
    r = z / (1 + z + np.sqrt(1 + 2 * z))
    terms = int(np.log(1e-9 * (1 - r)) / np.log(r)) // 2 * 2 + 3
    c = 2 * r ** np.arange(terms) / np.sqrt(1 + 2 * z)
    c[0] /= 2
    u = jnp.asarray(start_ratio(generator, p0))
    coefficients = jnp.asarray(np.pad((c / c.sum())[::-1], (0, (1 << 13) - terms)))
    run = lambda: chebyshev_sum(stepper.rates, stepper.killed, coefficients, jnp.asarray(terms), u)  # noqa: E731
    jax.block_until_ready(run())
    return run, terms


def against_py_pde(quick: bool) -> str:
    n = 64 if quick else 256
    generator, p0 = started(n, 2)
    ours = lambda: fokker_planck.evolve(generator, p0, [1.0], rtol=ERROR)  # noqa: E731
    ours()
    h = 2 * peers.HALF / n
    # Euler's limit of stability with the steepest drift; and an error of 8e-4 asks for as many steps at least.
    steps = max(int(np.ceil(4 * peers.TEMPERATURE / h**2 * 1.02)), 900)
    run = peers.py_pde(n, steps)
    mine, theirs = turns(ours, lambda: run(steps), 1 if quick else 3)
    head = ("cells", "`evolve`", "py-pde, an Euler step", "steps", "all of them", "ratio")
    row = [f"{n}²", f"{1e3 * mine:.1f} ms", f"{1e3 * theirs / steps:.2f} ms", steps, f"{theirs:.2f} s",
           measure.verdict(theirs / mine, 40)]  # fmt: skip
    return (
        "The same transient in explicit Euler steps, compiled by numba, as many as stability (D alone) and 8e-4 ask "
        "for, its stepper compiled beforehand.\n\n" + measure.table(head, [row])
    )


def against_fplanck(quick: bool) -> str:
    rows = []
    for n in (32,) if quick else (128, 256):
        began = time.process_time()
        model = peers.fplanck_model(n, 2)
        built = time.process_time() - began
        p = peers.start(n, 2)
        generator, p0 = started(n, 2)
        ours = lambda g=generator, q=p0: fokker_planck.evolve(g, q, [1.0], rtol=1e-10)  # noqa: E731
        ours()
        # The start, as fplanck takes it: a function of the points.
        density = lambda *x, p=p: p  # noqa: E731
        mine, theirs = turns(ours, lambda m=model, f=density: m.propagate(f, 1.0), 1 if quick else 2)
        rows.append([f"{n}², transient to 1e-10", f"{1e3 * mine:.0f} ms", f"{1e3 * theirs:.0f} ms",
                     measure.verdict(theirs / mine, None)])  # fmt: skip
        law = best(lambda g=generator: fokker_planck.stationary(g), 3)
        steady = measure.cpu_seconds(model.steady_state)
        rows.append([f"{n}², stationary law", f"{1e3 * law:.1f} ms", f"{1e3 * steady:.0f} ms",
                     measure.verdict(steady / law, None)])  # fmt: skip
        made = best(lambda m=n: fokker_planck.assemble(well(2), box(m, 2)), 2)
        rows.append([f"{n}², assembly", f"{1e3 * made:.0f} ms", f"{1e3 * built:.0f} ms",
                     measure.verdict(built / made, None)])  # fmt: skip
    return (
        "fplanck's constructor, `propagate` (SciPy's `expm_multiply`) and `steady_state` (an eigenvector). For a "
        "reversible process ours is a formula; our assembly evaluates drift and noise at eight points of every edge, "
        "compilation included.\n\n" + measure.table(("", "ours", "fplanck", "ratio"), rows)
    )


def tridiagonal(quick: bool) -> str:
    rows, rng = [], np.random.default_rng(0)
    for n in (10_000,) if quick else (100_000, 1 << 17, 1_000_000):
        lower, upper = -rng.uniform(size=(2, n))
        diagonal, b = 1.01 - lower - upper, rng.normal(size=n)
        bands = np.stack([np.roll(upper, 1), diagonal, np.roll(lower, -1)])
        exact = scipy.linalg.solve_banded((1, 1), bands, b)
        blocks = blocks_for(n)
        arrays = [jnp.asarray(v) for v in (lower, diagonal, upper)]
        factors, right = jax.block_until_ready((factor(*arrays, blocks), folded(jnp.asarray(b), blocks)))
        x = np.asarray(solve(factors, right)).T.ravel()[:n]
        error = np.max(np.abs(x - exact)) / np.max(np.abs(exact))
        mine, banded = turns(
            lambda f=factors, r=right: jax.block_until_ready(solve(f, r)),
            lambda m=bands, v=b: scipy.linalg.solve_banded((1, 1), m, v, check_finite=False), 1 if quick else 9,
        )  # fmt: skip
        made = best(lambda a=arrays, p=blocks: jax.block_until_ready(factor(*a, p)), 3)
        gtsv = best(lambda a=lower, d=diagonal, c=upper, v=b: scipy.linalg.lapack.dgtsv(a[1:], d, c[:-1], v))
        verdict = measure.verdict(min(banded, gtsv) / mine, 3)
        rows.append([f"{n:,}", blocks, f"{1e3 * mine:.2f} ms", f"{error:.0e}", f"{1e3 * made:.1f} ms",
                     f"{1e3 * banded:.2f} ms", f"{1e3 * gtsv:.2f} ms", verdict])  # fmt: skip
    head = ("unknowns", "blocks", "solve", "error", "factors, once", "`solve_banded`", "LAPACK `gtsv`", "ratio")
    return (
        "Solves with given factors, in blocks, against LAPACK, which factors anew each time; for a matrix that is used "
        "once LAPACK is the faster one.\n\n" + measure.table(head, rows)
    )


def multigrid_iterations(quick: bool) -> str:
    square = lambda r, n: Grid.uniform((-r, r, n), (-r, r, n))  # noqa: E731
    sinh = lambda r, n: Grid.stretched((r, n, 1.0), (r, n, 1.0))  # noqa: E731
    lp = lambda f, k: Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * k * f(x)))  # noqa: E731
    cold = gibbs(lambda x: potential(x, 2), 0.01)
    oblique = lambda x: 0.25 * (400 * (x[0] + x[1]) ** 2 + (x[0] - x[1]) ** 2)  # noqa: E731
    rosenbrock = lambda x: (1 - x[0]) ** 2 / 20 + 5 * (x[1] - x[0] ** 2) ** 2  # noqa: E731
    cases = {
        "ring, stretched": (lp(lambda x: (x @ x - 1) ** 2 / 4 + 0.05, 0.5), lambda n: sinh(20.0, n)),
        "double well": (well(2), lambda n: box(n, 2)),
        "cold double well": (cold, lambda n: box(n, 2)),
        "power law to 1e4": (lp(lambda x: 1 + x @ x, 0.5), lambda n: sinh(1e4, n)),
        "valley 400:1": (gibbs(lambda x: 0.5 * (x[0] ** 2 + 400 * x[1] ** 2), 0.05), lambda n: square(1.5, n)),
        "oblique valley": (gibbs(oblique, 0.05), lambda n: square(1.5, n)),
        "Rosenbrock": (gibbs(rosenbrock, 0.1), lambda n: square(2.5, n)),
        "rugged": (gibbs(lambda x: 0.5 * x @ x + 0.3 * jnp.sum(jnp.cos(8 * x)), 0.05), lambda n: square(2.0, n)),
        "space": (well(3), lambda n: box(n // 4, 3)),
    }
    rows, most, sizes = [], 0, (64,) if quick else (64, 128, 256)
    for name, (process, grid_of) in cases.items():
        row = [name]
        for n in sizes:
            generator = fokker_planck.assemble(process, grid_of(n))
            f = np.random.default_rng(0).standard_normal(generator.grid.size)
            counts = []
            for shift in (100.0, 1.0, 0.01):
                assert generator.log_weights is not None
                jumps = generator_jumps(generator, np.full(generator.grid.shape, shift), generator.log_weights)
                counts.append(gmres(jumps.matrix(), Multigrid(jumps), f, np.zeros_like(f), 1e-8)[2])
            most = max(most, *counts)
            row.append(", ".join(map(str, counts)))
        rows.append(row)
    head = ("", *(f"{n}² ({n // 4}³ in space)" for n in sizes))
    passed = "pass" if most <= 16 else "**fail**"
    return (
        "GMRES to 1e-8 with one V-cycle a step, for a random right side and shifts of 100, 1 and 0.01. At most "
        f"{most} (target 16: {passed}).\n\n" + measure.table(head, rows)
    )


def growth(quick: bool) -> str:
    rows = []
    for d, sizes, what in (
        (1, (1000, 4000) if quick else (10_000, 100_000, 1_000_000), "contour step of any length, rtol 1e-10"),
        (2, (64, 128) if quick else (128, 256, 512), "`evolve` to t = 1, rtol 8e-4"),
        (2, (64, 128) if quick else (128, 256, 512), "a product with the generator"),
        (3, (16, 24) if quick else (32, 64, 96), "a product with the generator"),
    ):
        cells, times = [], []
        for n in sizes:
            generator, p0 = started(n, d)
            run = _product(generator, p0) if "product" in what else None
            rtol = 1e-10 if d == 1 else ERROR
            times.append(run() if run else _evolve_seconds(generator, p0, rtol))
            cells.append(n**d)
        exponent = np.polyfit(np.log(cells), np.log(times), 1)[0]
        arrays = 2 * d + 4
        floor = arrays * 8 * np.array(cells) / bandwidth()
        gap = ", ".join(f"{100 * f / t:.0f} %" for f, t in zip(floor, times, strict=True)) if "product" in what else "-"
        target = f" (target 1.15: {'pass' if exponent <= 1.15 else '**fail**'})" if d < 3 else ""
        rows.append([f"{d}-D, {what}", ", ".join(f"{n}" for n in sizes), ", ".join(f"{1e3 * t:.3g}" for t in times),
                     f"{exponent:.2f}{target}", gap])  # fmt: skip
    head = ("", "cells an axis", "ms", "exponent in all cells", "of the memory's limit")
    return (
        f"The limit is that of reading and writing 2 d + 4 arrays, at the {bandwidth() / 1e9:.0f} GB/s that a copy of "
        "128 MiB reaches here; small grids live in the caches and may pass it. The number of products grows like the "
        "cells an axis, the root of what explicit steps take, so that a transient in the plane grows with cells^1.5; "
        "one product, like an implicit step, with the cells.\n\n" + measure.table(head, rows)
    )


_copied: list[float] = []


def bandwidth() -> float:
    """Bytes per second of a copy, read and written."""
    if not _copied:
        a, b = np.ones(1 << 24), np.ones(1 << 24)
        _copied.append(2 * a.nbytes / best(lambda: np.copyto(b, a)))
    return _copied[0]


def _evolve_seconds(generator, p0, rtol: float) -> float:
    run = lambda: fokker_planck.evolve(generator, p0, [1.0], rtol=rtol)  # noqa: E731
    run()
    return best(run, 2)


def _product(generator, p0) -> Callable[[], float]:
    stepper = ChebyshevSteps(generator, 1e-8)
    terms = 101
    coefficients = jnp.asarray(np.pad(ive(np.arange(terms), 50.0), (0, (1 << 13) - terms)))
    u = jnp.asarray(start_ratio(generator, p0))
    run = lambda: jax.block_until_ready(  # noqa: E731
        chebyshev_sum(stepper.rates, stepper.killed, coefficients, jnp.asarray(terms), u)
    )
    run()
    return lambda: best(run, 3) / terms


def irreversible(quick: bool) -> str:
    rows = []
    for n in (64,) if quick else (128, 256, 512):
        turning = jnp.asarray([[0.0, 1.0], [-1.0, 0.0]])

        def drift(t, x, turning=turning):
            return -(jnp.eye(2) + turning) @ jax.grad(lambda y: potential(y, 2))(x)

        process = Diffusion(drift, lambda t, x: jnp.sqrt(2 * jnp.asarray(0.1)))
        began = time.process_time()
        generator = fokker_planck.assemble(process, box(n, 2))
        built = time.process_time() - began
        began = time.process_time()
        law = fokker_planck.stationary(generator)
        spent = time.process_time() - began
        left = np.abs(generator.matrix @ law.mass.ravel()).sum()
        left /= np.abs(generator.matrix.diagonal() * law.mass.ravel()).sum()
        verdict = f" (target 10 s: {'pass' if spent < 10 else '**fail**'})" if n == 512 else ""
        rows.append([f"{n}²", f"{built:.1f} s", f"{spent:.1f} s{verdict}", f"{left:.0e}"])
    return (
        "b = -(1 + J) ∇f with J a quarter turn and D = 1/10: the law is that of the gradient process, which the solver "
        "does not know. Its error estimate, from cells twice as wide, is in the time.\n\n"
        + measure.table(("cells", "assembly", "stationary law", "residual over traffic"), rows)
    )


def space(quick: bool) -> str:
    n = 16 if quick else 64
    generator, p0 = started(n, 3)
    inside = lambda x: x[0] < 0.0  # noqa: E731
    spent = {
        "stationary law": lambda: fokker_planck.stationary(generator),
        "transient to t = 1, rtol 8e-4": lambda: fokker_planck.evolve(generator, p0, [1.0], rtol=ERROR),
        "mean exit times from x₀ < 0": lambda: fokker_planck.exit_time(generator.process, generator.grid, inside),
    }
    rows = []
    for name, run in spent.items():
        seconds = measure.cpu_seconds(run)
        rows.append([f"{n}³, {name}, first call", f"{seconds:.1f} s", _seconds_verdict(seconds)])
    rows.append([f"{n}³, assembly", f"{measure.cpu_seconds(lambda: started(n, 3)):.1f} s", ""])
    big = 24 if quick else 128
    code = f"import fokker_planck_speed as s; print(s.stationary_in_memory({big}))"
    out = subprocess.run([sys.executable, "-c", code], cwd=measure.HERE, capture_output=True, text=True, check=False)
    rows.append([f"{big}³, assembly and stationary law", out.stdout.strip() or f"failed: {out.stderr[-200:]}", ""])
    return measure.table(("", "CPU time", "in seconds"), rows)


def _seconds_verdict(seconds: float) -> str:
    return f"target 60 s: {'pass' if seconds < 60 else '**fail**'}"


def stationary_in_memory(n: int) -> str:
    """Time and peak memory of a process that finds a stationary law in n³ cells."""
    began = time.process_time()
    law = fokker_planck.stationary(fokker_planck.assemble(well(3), box(n, 3)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert abs(law.mass.sum() - 1) < 1e-12
    return f"{time.process_time() - began:.0f} s, at most {peak:.1f} of {whole:.0f} GiB"
