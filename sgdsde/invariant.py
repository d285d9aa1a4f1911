"""One model by every route at once: particles, Fokker-Planck and the closed forms of its invariant law."""

import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import Density, Grid, fokker_planck, sde
from solvers.grid import evaluate

from . import theory
from ._checks import scalar_valued
from .distances import Comparison, compare
from .models import SGD
from .noise import Constant, LossProportional

# A law is accepted below the first and rejected above the second number of standard errors beyond sampling noise.
accepted_below, rejected_above = 4.0, 10.0

# The law that each noise is known to have.
_own_law = {Constant: "Gibbs", LossProportional: "power law"}

# The mass beyond the grid along each axis, the reach in units of the spread of the law at most, and cells along each
# axis, by dimension.
_tail_mass = 1e-9
_reach = {1: 1e6, 2: 1e3}
_cells = {1: 4000, 2: 300}

# Bins of the comparison: this many of equal mass per axis, and the far tails by themselves.
_bins = {1: 40, 2: 12}
_tail_quantiles = {1: (1e-4, 1e-3, 1e-2), 2: (1e-3, 1e-2)}

# The step in units of the mean curvature's time: Euler-Maruyama's bias is then about half a percent.
_step = 0.01

# Relaxation times before the first sample, and as many over which samples are taken. One run takes at most so many
# path-steps, by dimension: some ten seconds on two cores.
_relaxations, _samples_per_relaxation = 8.0, 2
_most_path_steps = {1: 4e8, 2: 1e8}

# Bins that hold less than this by the Fokker-Planck law count as one: alone they would be noise.
_least_mass = 2e-4


class Row(eqx.Module):
    """One line of the table: a law obtained one way against a closed form. `excess` is in standard errors."""

    route: str
    law: str
    comparison: Comparison
    excess: float

    @property
    def opinion(self) -> str:
        if self.excess < accepted_below:
            return "agrees"
        return "rejected" if self.excess > rejected_above else "doubtful"


class InvariantComparison(eqx.Module):
    """The outcome of `compare_invariant`.

    `rows` is the table, `verdict` what it says in a sentence. `laws` holds the closed forms and the Fokker-Planck law
    on `grid`; `sampled` the particles' laws on `bins`; `marginals` those of each coordinate on the fine grid, by every
    route. `unavailable` says why a closed form does not exist.
    """

    model: SGD
    grid: Grid
    bins: Grid
    laws: dict[str, Density]
    sampled: dict[str, Density]
    marginals: dict[str, tuple[Density, ...]]
    rows: list[Row]
    unavailable: dict[str, str]
    notes: list[str]

    @property
    def verdict(self) -> str:
        """Which closed form all routes agree with and which they reject, by the routes free of a bias in dt."""
        parts = []
        for law in sorted({r.law for r in self.rows}, key=lambda law: (not self.agrees_with(law), law)):
            decisive = [r for r in self.rows if r.law == law and r.route in _decisive(self.rows)]
            worst = max(decisive, key=lambda r: r.excess)
            least = min(decisive, key=lambda r: r.excess)
            if worst.excess < accepted_below:
                parts.append(
                    f"ACCEPTED: {_formula[law]}, by every route (at most {max(0.0, worst.excess):.1f} standard errors)."
                )
            elif least.excess > rejected_above:
                parts.append(
                    f"REJECTED: {_formula[law]}, by every route (at least {_number(least.excess)} standard errors)."
                )
            else:
                parts.append(
                    f"UNDECIDED: {_formula[law]}: {least.route} at {_number(least.excess)}, {worst.route} at "
                    f"{_number(worst.excess)} standard errors."
                )
        parts += [f"DOES NOT EXIST: {_formula[law]}: {reason}" for law, reason in self.unavailable.items()]
        return "\n".join(parts)

    def agrees_with(self, law: str) -> bool:
        """Whether every route without a bias in dt agrees with "Gibbs", "power law" or "Fokker-Planck"."""
        rows = [r for r in self.rows if r.law == law and r.route in _decisive(self.rows)]
        return bool(rows) and all(r.excess < accepted_below for r in rows)

    def plot(self, axes=None):
        """The figure: densities, tails on log-log axes, residuals. Returns the axes."""
        from . import plots

        return plots.invariant_densities(self, axes)

    def __str__(self) -> str:
        d = self.bins.ndim
        head = ["route", "against", "TV", "Hellinger", "KL", *[f"W1 axis {k}" for k in range(d)], "excess", ""]
        lines = [head]
        for r in self.rows:
            value, sem = r.comparison.value, r.comparison.sem
            wasserstein = [_pm(v, s) for v, s in zip(value.wasserstein, sem.wasserstein, strict=True)]
            cells = [_pm(value.tv, sem.tv), _pm(value.hellinger, sem.hellinger), _pm(value.kl, sem.kl), *wasserstein]
            lines.append([r.route, r.law, *cells, _number(r.excess), r.opinion])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        table.insert(1, "-" * max(map(len, table)))
        notes = [f"note: {n}" for n in self.notes]
        return "\n".join([*table, *notes, self.verdict])


_formula = {
    "Gibbs": "Gibbs, exp(-f/ησ)",
    "power law": "the power law, f^(-1-1/ησ)",
    "Fokker-Planck": "the Fokker-Planck law",
}


def compare_invariant(
    model: SGD,
    grid: Grid | None = None,
    *,
    dim: int | None = None,
    x0: Any = None,
    paths: int = 100_000,
    dt: float | None = None,
    key: Any = 0,
    methods: Sequence[sde.AbstractMethod] | None = None,
    progress: bool | None = None,
) -> InvariantComparison:
    """Holds the invariant law of a model by every route against the closed forms, in one or two dimensions.

    - particles by each of `methods` (Euler-Maruyama and Milstein) at `dt` and 2 dt, and extrapolated to dt → 0 by
      2 p_dt - p_2dt, which removes the bias of weak order 1;
    - discrete SGD with Gaussian gradient noise, which is Euler-Maruyama with dt = η: its bias is real;
    - the Fokker-Planck equation, from drift and noise alone, with the difference to a grid of half as many cells as
      its error;
    - Gibbs exp(-f/ησ) and the power law f^(-1-1/ησ), each where it exists. For a noise of which neither is the law,
      particles are held against the Fokker-Planck law, too.

    The dimension is that of `grid`, of `x0` (d,), or `dim`, or else 1. Without `grid` one is found that covers the
    tails; bins are of about equal mass. Without `dt` it is 1 % of the time scale of the mean curvature. `paths`
    particles start at `x0`, by default the median of the Fokker-Planck law, and are sampled after eight relaxation
    times (1/gap); where that takes too long, they start from the Fokker-Planck law, and the result says so. They run in
    float32: its rounding is far below their sampling error.

    Needs 64-bit JAX. `ValueError` names the condition when the model has no invariant law.
    """
    if not isinstance(model, SGD):
        raise TypeError(f"`model` must be an `sg.SGD(loss, noise, learning_rate)`, but got {type(model).__name__}.")
    d = _dimension(grid, x0, dim)
    grid = _automatic_grid(model, d) if grid is None else grid
    laws, unavailable = _closed_forms(model, grid)
    generator = fokker_planck.assemble(model, grid)
    p = fokker_planck.stationary(generator)
    laws = {**laws, "Fokker-Planck": p}
    bins = _Bins(p)
    plan, notes = _plan(model, generator, p, x0, dt, paths)
    methods = [sde.EulerMaruyama(), sde.Milstein()] if methods is None else list(methods)
    particles = _Particles(model, grid, bins, p, plan, paths, key, progress)
    for method in methods:
        particles.method(method)
    particles.discrete()
    rows, more = _fokker_planck_rows(p, generator, bins, laws)
    marginals = particles.marginals | {name: _marginals(q) for name, q in laws.items()}
    for route, density in particles.sampled.items():
        for law in _targets(model, laws):
            binned = compare(density, bins.of(laws[law]))
            rows.append(Row(route, law, _by_axis(binned, marginals.get(route), marginals[law]), binned.excess))
    notes = notes + more + particles.notes + _finite_rate_note(rows, model)
    return InvariantComparison(model, grid, bins.grid, laws, particles.sampled, marginals, rows, unavailable, notes)


class _Plan(eqx.Module):
    """How particles are run: where from, for how long, how finely."""

    x0: Float[np.ndarray, "..."]
    dt: float
    burn_in: float
    until: float
    spacing: float


def _dimension(grid: Grid | None, x0: Any, dim: int | None) -> int:
    said = {
        "grid": None if grid is None else grid.ndim,
        "x0": None if x0 is None else np.shape(x0)[-1] if np.ndim(x0) else 0,
        "dim": dim,
    }
    said = {name: d for name, d in said.items() if d is not None}
    if len(set(said.values())) > 1:
        raise ValueError(
            "The dimension must be one, but " + ", ".join(f"`{n}` says {d}" for n, d in said.items()) + "."
        )
    d = next(iter(said.values()), 1)
    if d not in _reach:
        raise ValueError(f"`compare_invariant` works in 1 and 2 dimensions, but {', '.join(said)} says {d}.")
    return d


def _automatic_grid(model: SGD, d: int) -> Grid:
    """A stretched grid about the median of the law, on the scale of its spread, found from coarse solutions."""
    centre, scale, reach = np.zeros(d), np.ones(d), np.full(d, _reach[d])
    _check_loss(model, _about(centre, scale, reach, _cells[d] // 2))
    for _ in range(2):
        with warnings.catch_warnings():
            # The law in this first, coarse box only sets the scale of the next.
            warnings.simplefilter("ignore", UserWarning)
            p = fokker_planck.stationary(fokker_planck.assemble(model, _about(centre, scale, reach, _cells[d] // 2)))
        for k in range(d):
            low, centre[k], high = _quantiles(p.marginal(k), [0.1, 0.5, 0.9])
            scale[k] = 0.5 * (high - low)
            ends = _quantiles(p.marginal(k), [_tail_mass, 1 - _tail_mass])
            reach[k] = min(_reach[d] * scale[k], 1.5 * np.max(np.abs(ends - centre[k])))
    return _about(centre, scale, reach, _cells[d])


def _check_loss(model: SGD, grid: Grid) -> None:
    """A negative loss under loss-proportional noise is named as such, before it is the root of a negative number."""
    if not isinstance(model.gradient_noise, LossProportional):
        return
    points = grid.points.reshape(-1, grid.ndim)
    values = evaluate(scalar_valued(model.loss), points)
    lowest = int(np.argmin(values))
    if values[lowest] < 0:
        raise ValueError(
            f"The loss must not be negative under loss-proportional noise, because D = ησf must not, but f = "
            f"{values[lowest]:.6g} at x = {points[lowest]}. Add a constant above {-values[lowest]:.6g} to the loss."
        )


def _about(centre: np.ndarray, scale: np.ndarray, reach: np.ndarray, cells: int) -> Grid:
    grid = Grid.stretched(*[(r, cells, s) for r, s in zip(reach, scale, strict=True)])
    return Grid(
        [e + c for e, c in zip(grid.edges, centre, strict=True)],
        [x + c for x, c in zip(grid.centres, centre, strict=True)],
    )


def _quantiles(p: Density, levels: Any) -> Float[np.ndarray, " n"]:
    cdf = p.cdf()
    return np.interp(np.asarray(levels) * cdf[-1], cdf, p.grid.edges[0])


class _Bins:
    """Bins in which laws are compared: of about equal mass along each axis by the law p, and small ones for the tails.

    Their edges are edges of the fine grid, and of the coarser one with half as many cells. Bins of hardly any mass,
    such as the corners of a plane, count as one: their mass goes to `Density.outside`.
    """

    def __init__(self, p: Density):
        n = _bins[p.grid.ndim]
        tails = np.array(_tail_quantiles[p.grid.ndim])
        levels = np.sort(np.concatenate([tails, np.arange(1, n) / n, 1 - tails]))
        edges = []
        for k, fine in enumerate(p.grid.edges):
            cuts = np.searchsorted(fine, _quantiles(p.marginal(k), levels)) // 2 * 2
            cuts = cuts[(cuts > 0) & (cuts < fine.size - 1)]
            edges.append(fine[np.unique(np.concatenate([[0], cuts, [fine.size - 1]]))])
        self.grid = Grid(edges)
        self.sparse = p.on(self.grid).mass < _least_mass

    def of(self, p: Density) -> Density:
        """The law in these bins, from one on them or on a finer grid."""
        p = p if p.grid.shape == self.grid.shape else p.on(self.grid)
        replicates = None if p.replicates is None else np.where(self.sparse, 0.0, p.replicates)
        return Density(self.grid, np.where(self.sparse, 0.0, p.mass), p.outside + p.mass[self.sparse].sum(), replicates)


def _marginals(p: Density) -> tuple[Density, ...]:
    return tuple(p.marginal(k) for k in range(p.grid.ndim))


def _by_axis(binned: Comparison, marginals: tuple[Density, ...] | None, law: tuple[Density, ...]) -> Comparison:
    """The comparison with its Wasserstein distances from the fine marginals; bins that reach far out would blur them.

    Without marginals they are unknown: NaN.
    """
    if marginals is None:
        unknown = np.full(len(law), np.nan)
        return eqx.tree_at(
            lambda c: (c.value.wasserstein, c.sem.wasserstein, c.floor.wasserstein), binned, (unknown,) * 3
        )
    each = [compare(a, b) for a, b in zip(marginals, law, strict=True)]
    return eqx.tree_at(
        lambda c: (c.value.wasserstein, c.sem.wasserstein, c.floor.wasserstein),
        binned,
        tuple(np.concatenate([getattr(c, name).wasserstein for c in each]) for name in ("value", "sem", "floor")),
    )


def _closed_forms(model: SGD, grid: Grid) -> tuple[dict[str, Density], dict[str, str]]:
    """The closed forms that exist, and why others do not; an error if it is the model's own."""
    laws, reasons = {}, {}
    if not hasattr(model.gradient_noise, "sigma"):
        return laws, reasons
    for name, law in (("Gibbs", theory.gibbs), ("power law", theory.power_law)):
        try:
            laws[name] = law(model.loss, model.temperature, grid)
        except ValueError as error:
            if _own_law.get(type(model.gradient_noise)) == name:
                raise
            reasons[name] = str(error)
    return laws, reasons


def _targets(model: SGD, laws: dict[str, Density]) -> list[str]:
    """What particles are held against: the closed forms, and the Fokker-Planck law where none is known to be right."""
    known = type(model.gradient_noise) in _own_law
    return [law for law in laws if law != "Fokker-Planck" or not known]


def _plan(
    model: SGD, generator: fokker_planck.Generator, p: Density, x0: Any, dt: float | None, paths: int
) -> tuple[_Plan, list[str]]:
    """Steps by the curvature, times by the spectral gap."""
    points, weights = p.grid.points.reshape(-1, p.grid.ndim), p.mass.ravel()
    zero = jnp.zeros(())
    drift = evaluate(lambda x: model.drift(zero.astype(x.dtype), x), points)
    tensor = evaluate(lambda x: jnp.trace(model.diffusion(zero.astype(x.dtype), x)), points)
    # E|∇f|² = E tr(D ∇²f) at equilibrium for constant D: their ratio is the mean curvature that the noise sees.
    curvature = float((weights @ (drift**2).sum(axis=1)) / (weights @ tensor)) * p.grid.ndim
    dt = float(f"{_step / curvature:.2g}") if dt is None else float(dt)
    gap = fokker_planck.spectrum(_coarse(generator), k=2).gap
    notes = []
    relax = 1 / gap
    start = np.array([_quantiles(p.marginal(k), [0.5])[0] for k in range(p.grid.ndim)]) if x0 is None else x0
    most_steps = _most_path_steps[p.grid.ndim] / paths
    if 2 * _relaxations * relax / dt > most_steps:
        # Too slow to be reached from a point: test that the law stays what it is.
        notes.append(
            f"relaxation takes {relax:.3g} time units, and the particles run for {most_steps * dt:.3g}: they start "
            "from the Fokker-Planck law, and what is tested is that it does not change in that time."
        )
        relax = most_steps * dt / (2 * _relaxations)
        start = None
    spacing = max(2 * dt, relax / _samples_per_relaxation)
    whole = 2 * dt * max(1, round(spacing / (2 * dt)))
    samples = int(2 * _relaxations * _samples_per_relaxation)
    x0 = np.asarray(start if start is not None else np.full(p.grid.ndim, np.nan), dtype=float)
    return _Plan(x0, dt, whole * (samples // 2), whole * samples, whole), notes


def _coarse(generator: fokker_planck.Generator) -> fokker_planck.Generator:
    """The generator on at most about 10^4 cells: enough for the relaxation time."""
    while generator.grid.size > 10_000 and all(n % 2 == 0 for n in generator.grid.shape):
        generator = fokker_planck.coarsen(generator)
    return generator


class _Particles:
    """Runs particles by a plan, each run with its own key, and keeps their laws."""

    def __init__(self, model: SGD, grid: Grid, bins: _Bins, p: Density, plan: _Plan, paths: int, key: Any, progress):
        self.model, self.grid, self.bins, self.plan, self.progress = model, grid, bins, plan, progress
        self.key = jax.random.key(key) if isinstance(key, int) else key
        self.x0 = _starting_points(p, plan, paths)
        self.runs = 0
        self.sampled: dict[str, Density] = {}
        self.marginals: dict[str, tuple[Density, ...]] = {}
        self.notes: list[str] = []

    def run(self, method: sde.AbstractMethod, dt: float) -> tuple[Density, tuple[Density, ...]]:
        """The law in the bins, and that of each coordinate on the fine grid."""
        every = max(1, round(self.plan.spacing / dt))
        steps = every * round(self.plan.until / self.plan.spacing)
        axes = range(self.grid.ndim)
        observe = {f"axis {k}": sde.Histogram(self.grid.axis(k), _coordinates[k]) for k in axes}
        if self.grid.ndim > 1:
            observe["bins"] = sde.Histogram(self.bins.grid)
        self.runs += 1
        out = sde.simulate(
            self.model,
            method,
            self.x0,
            t1=steps * dt,
            dt=dt,
            key=jax.random.fold_in(self.key, self.runs),
            observe=observe,
            burn_in=steps // 2 * dt,
            every=every,
            progress=self.progress,
        )
        marginals = tuple(out[f"axis {k}"] for k in axes)
        return self.bins.of(out["bins"] if "bins" in out.observed else marginals[0]), marginals

    def method(self, method: sde.AbstractMethod) -> None:
        """The laws of a method at dt, and extrapolated to dt → 0."""
        name, dt = _spoken.get(type(method).__name__, type(method).__name__), self.plan.dt
        fine, marginal = self.run(method, dt)
        coarse, _ = self.run(method, 2 * dt)
        self.sampled[f"{name}, dt={dt:.3g}"] = fine
        self.marginals[f"{name}, dt={dt:.3g}"] = marginal
        if np.all(2 * fine.mass >= coarse.mass):
            self.sampled[f"{name}, dt → 0"] = _extrapolated(fine, coarse)
        else:
            self.notes.append(
                f"{name} could not be extrapolated to dt → 0: some bins hold too few particles. Use more."
            )

    def discrete(self) -> None:
        """SGD itself: Euler-Maruyama with the learning rate as its step."""
        eta = float(self.model.learning_rate)
        name = f"SGD, step η={eta:.3g}"
        if eta < 2 * self.plan.dt:
            self.notes.append(f"{name} is left out: it is finer than the particles' own steps.")
            return
        try:
            self.sampled[name], self.marginals[name] = self.run(sde.EulerMaruyama(), eta)
        except FloatingPointError:
            self.notes.append(f"{name} diverged: this learning rate is beyond the stability of SGD on this loss.")


_spoken = {"EulerMaruyama": "Euler-Maruyama"}


# Functions with a name of their own, so that every run finds the program of the first.
_coordinates = (lambda t, x: x[:1], lambda t, x: x[1:2])


def _starting_points(p: Density, plan: _Plan, paths: int) -> Float[np.ndarray, "n d"]:
    """One point for all, or a sample of the density: a random point of a random cell."""
    if np.all(np.isfinite(plan.x0)):
        points = np.broadcast_to(plan.x0, (paths, p.grid.ndim)) if plan.x0.ndim == 1 else plan.x0
        return np.asarray(points, np.float32)
    random = np.random.default_rng(0)
    cells = np.unravel_index(random.choice(p.grid.size, size=paths, p=p.mass.ravel() / p.mass.sum()), p.grid.shape)
    return np.stack(
        [random.uniform(e[c], e[c + 1]) for e, c in zip(p.grid.edges, cells, strict=True)], axis=1, dtype=np.float32
    )


def _extrapolated(fine: Density, coarse: Density) -> Density:
    """2 p_dt - p_2dt, group by group: the part of the error that is linear in dt cancels."""
    outside = max(0.0, 2 * fine.outside - coarse.outside)
    replicates = None
    if fine.replicates is not None and coarse.replicates is not None:
        replicates = 2 * fine.replicates - coarse.replicates
    return Density(fine.grid, 2 * fine.mass - coarse.mass, outside, replicates)


def _fokker_planck_rows(
    p: Density, generator: fokker_planck.Generator, bins: _Bins, laws: dict[str, Density]
) -> tuple[list[Row], list[str]]:
    """The Fokker-Planck law against each closed form; its error is a third of what halving the cells changes."""
    if any(n % 2 for n in p.grid.shape):
        return [], ["the Fokker-Planck law is not judged: an error estimate needs an even number of cells."]
    with warnings.catch_warnings():
        # The fine solution has said it already.
        warnings.simplefilter("ignore", UserWarning)
        coarse = fokker_planck.stationary(fokker_planck.coarsen(generator))
    change = _by_axis(compare(bins.of(coarse), bins.of(p)), _marginals(coarse), _marginals(p)).value
    error = jax.tree.map(lambda c: np.maximum(c / 3, _rounding), change)
    rows = []
    for law in [law for law in laws if law != "Fokker-Planck"]:
        binned = _by_axis(compare(bins.of(p), bins.of(laws[law])), _marginals(p), _marginals(laws[law]))
        rows.append(
            Row("Fokker-Planck", law, Comparison(binned.value, error, binned.floor), float(binned.tv / error.tv))
        )
    return rows, []


def _finite_rate_note(rows: list[Row], model: SGD) -> list[str]:
    own = [r for r in rows if r.route.startswith("SGD") and r.law == _own_law.get(type(model.gradient_noise))]
    if not own or own[0].excess < accepted_below:
        return []
    return [
        f"{own[0].route} is {_number(own[0].excess)} standard errors away from its continuum limit: that is the "
        "effect of the finite learning rate, no error."
    ]


# The error of a Fokker-Planck law that did not change at all.
_rounding = 1e-10


def _decisive(rows: list[Row]) -> set[str]:
    """The routes without a bias in dt: the Fokker-Planck law and what was extrapolated, or else particles at dt."""
    routes = {r.route for r in rows}
    extrapolated = {r for r in routes if r.endswith("dt → 0")}
    particles = extrapolated or {r for r in routes if "dt=" in r}
    return particles | (routes & {"Fokker-Planck"})


def _number(x: float) -> str:
    return f"{x:.1f}" if abs(x) < 100 else f"{x:.3g}"


def _pm(value: float, sem: float) -> str:
    """A value and its error, to the digits that the error leaves."""
    if np.isnan(value):
        return "-"
    if not 0 < sem < np.inf:
        return f"{value:.2g}"
    if sem < 1e-6 or sem > 1e6:
        return f"{value:.2e} ± {sem:.0e}"
    digits = max(0, int(np.ceil(-np.log10(sem))))
    return f"{value:.{digits}f} ± {sem:.{digits}f}"
