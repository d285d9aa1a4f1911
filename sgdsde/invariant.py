"""One model by every route at once: particles, Fokker-Planck and the closed forms of its invariant law."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from solvers import Density, Grid, fokker_planck, sde
from solvers.diagnosis import Diagnosis, judged
from solvers.provenance import Provenance, provenance_of
from solvers.result import AbstractResult
from solvers.saving import NotSaved

from . import theory
from ._binning import Bins, automatic_grid
from ._particles import Particles, plan_particles
from .distances import Comparison, accepted_below, compare, rejected_above
from .models import SGD
from .noise import Constant, LossProportional

# The law that each noise is known to have.
_own_law = {Constant: "Gibbs", LossProportional: "power law"}


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


class InvariantComparison(AbstractResult):
    """The outcome of `compare_invariant`.

    `rows` is the table, `verdict` what it says in a sentence. `laws` holds the closed forms and the Fokker-Planck law
    on `grid`; `sampled` the particles' laws on `bins`; `marginals` those of each coordinate on the fine grid, by every
    route. `unavailable` says why a closed form does not exist.
    """

    model: SGD | NotSaved
    grid: Grid
    bins: Grid
    laws: dict[str, Density]
    sampled: dict[str, Density]
    marginals: dict[str, tuple[Density, ...]]
    rows: list[Row]
    unavailable: dict[str, str]
    notes: list[str]
    provenance: Provenance | None = eqx.field(static=True, default=None)

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

    def diagnose(self) -> Diagnosis:
        """What is to be said of the Fokker-Planck law, of each sampled one, and of routes that do not agree."""
        found = [
            dataclasses.replace(f, about=f"{name}: {f.about}")
            for name, p in ({k: self.laws[k] for k in self.laws if k == "Fokker-Planck"} | self.sampled).items()
            for f in p.diagnose().findings
        ]
        undecided = [r for r in self.rows if r.route in _decisive(self.rows) and r.opinion == "doubtful"]
        text = f"{len(undecided)} of {len(self.rows)} comparisons are neither accepted nor rejected"
        return Diagnosis((*found, judged("verdict", not undecided, text, "Use more `paths`, or a smaller `dt`")))

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
        made = [] if self.provenance is None else [self.provenance.brief]
        return "\n".join([*table, *notes, *made, self.verdict])


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
    began, d = time.perf_counter(), _dimension(grid, x0, dim)
    grid = automatic_grid(model, d) if grid is None else grid
    laws, unavailable = _closed_forms(model, grid)
    generator = fokker_planck.assemble(model, grid)
    assert isinstance(generator, fokker_planck.Generator)
    p = fokker_planck.stationary(generator)
    laws = {**laws, "Fokker-Planck": p}
    bins = Bins(p)
    plan, notes = plan_particles(model, generator, p, x0, dt, paths)
    methods = [sde.EulerMaruyama(), sde.Milstein()] if methods is None else list(methods)
    particles = Particles(model, grid, bins, p, plan, paths, key, progress)
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
    made = provenance_of("sgdsde.compare_invariant", model, d, np.float64, key, time.perf_counter() - began)
    return InvariantComparison(
        model, grid, bins.grid, laws, particles.sampled, marginals, rows, unavailable, notes, made
    )


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
    if d not in (1, 2):
        raise ValueError(f"`compare_invariant` works in 1 and 2 dimensions, but {', '.join(said)} says {d}.")
    return d


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


def _fokker_planck_rows(
    p: Density, generator: fokker_planck.Generator, bins: Bins, laws: dict[str, Density]
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


# The error of a Fokker-Planck law that hardly changed: that of the closed forms' own cell masses.
_rounding = 1e-8


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
