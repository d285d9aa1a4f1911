"""Particles for a model whose relaxation time and scales are known: how long, how finely, and their laws."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import Density, Grid, fokker_planck, sde
from solvers.grid import evaluate

from ._binning import Bins, quantiles
from .models import SGD

# The step in units of the mean curvature's time: Euler-Maruyama's bias is then about half a percent.
_step = 0.01

# Relaxation times before the first sample, and as many over which samples are taken. One run takes at most so many
# path-steps, by dimension: some ten seconds on two cores.
_relaxations, _samples_per_relaxation = 8.0, 2
_most_path_steps = {1: 4e8, 2: 1e8}


class Plan(eqx.Module):
    """How particles are run: where from, for how long, how finely."""

    x0: Float[np.ndarray, "..."]
    dt: float
    until: float
    spacing: float


def plan_particles(
    model: SGD, generator: fokker_planck.Generator, p: Density, x0: Any, dt: float | None, paths: int
) -> tuple[Plan, list[str]]:
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
    start = np.array([quantiles(p.marginal(k), [0.5])[0] for k in range(p.grid.ndim)]) if x0 is None else x0
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
    return Plan(x0, dt, whole * samples, whole), notes


def _coarse(generator: fokker_planck.Generator) -> fokker_planck.Generator:
    """The generator on at most about 10^4 cells: enough for the relaxation time."""
    while generator.grid.size > 10_000 and all(n % 2 == 0 for n in generator.grid.shape):
        generator = fokker_planck.coarsen(generator)
    return generator


class Particles:
    """Runs particles by a plan, each run with its own key, and keeps their laws."""

    def __init__(self, model: SGD, grid: Grid, bins: Bins, p: Density, plan: Plan, paths: int, key: Any, progress):
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


def _starting_points(p: Density, plan: Plan, paths: int) -> Float[np.ndarray, "n d"]:
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
