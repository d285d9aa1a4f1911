"""How far apart two laws are, with error bars where one of them was sampled."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from solvers import Density
from solvers.axes import axes_or_new
from solvers.diagnosis import Diagnosis, finite, judged, unknown
from solvers.drawing import guide, sampled
from solvers.provenance import Provenance
from solvers.result import AbstractResult

# Two laws may be one below the first and are not above the second number of standard errors beyond sampling noise.
accepted_below, rejected_above = 4.0, 10.0


class Distances(eqx.Module):
    """One number per distance; `wasserstein` has one per axis, in the units of that axis."""

    tv: float
    hellinger: float
    kl: float
    wasserstein: Float[np.ndarray, " d"]


class Comparison(AbstractResult):
    """The distances between two laws p and q.

    `sem` holds their standard errors and `floor` what sampling noise alone would make of them if the laws were the
    same; both are 0 when neither law was sampled. `excess` is the total variation beyond that floor in standard
    errors: small when the laws may be one, large when they are not; infinite for different laws without error bars.
    """

    value: Distances
    sem: Distances
    floor: Distances
    provenance: Provenance | None = eqx.field(static=True, default=None)

    @property
    def tv(self) -> float:
        """Total variation, ½ Σ |p - q|, between 0 and 1."""
        return self.value.tv

    @property
    def hellinger(self) -> float:
        """Hellinger distance, sqrt(1 - Σ sqrt(pq)), between 0 and 1."""
        return self.value.hellinger

    @property
    def kl(self) -> float:
        """Kullback-Leibler divergence of q from p, Σ p log(p/q), in nats; infinite where q is 0 and p is not."""
        return self.value.kl

    @property
    def wasserstein(self) -> Float[np.ndarray, " d"]:
        """Wasserstein distance of order 1 of each pair of marginals, ∫ |F_p - F_q| dx over the grid."""
        return self.value.wasserstein

    @property
    def excess(self) -> float:
        """Standard errors by which the total variation exceeds what sampling noise alone gives."""
        beyond = self.tv - self.floor.tv
        if self.sem.tv > 0:
            return beyond / self.sem.tv
        return 0.0 if beyond <= 0 else np.inf

    def diagnose(self) -> Diagnosis:
        """Whether distances are finite, and total variation stands out from what sampling alone would make of it."""
        found = [finite("distances", np.array([self.tv, self.hellinger, self.kl]), self.wasserstein)]
        if self.sem.tv == 0 and self.floor.tv == 0:
            return Diagnosis((*found, unknown("resolved", "neither law was sampled, so there are no error bars")))
        text = f"total variation is {self.excess:.3g} standard errors above that of sampling alone"
        clear = self.excess < accepted_below or self.excess > rejected_above
        return Diagnosis((*found, judged("resolved", clear, text, "Use more samples, or a coarser grid")))

    def plot(self, ax: Any = None) -> Any:
        """Draws tv and hellinger with two standard errors, and what sampling alone gives, on `ax` or new axes."""
        ax = axes_or_new(ax)
        names, value, sem, floor = ("tv", "hellinger"), self.value, self.sem, self.floor
        ax.bar(names, [value.tv, value.hellinger], yerr=[2 * sem.tv, 2 * sem.hellinger], color=sampled, alpha=0.6)
        ax.plot(names, [floor.tv, floor.hellinger], color=guide, marker="_", linestyle="", label="sampling alone")
        ax.set(ylabel="distance")
        ax.legend(frameon=False)
        return ax

    def __str__(self) -> str:
        def shown(name: str) -> str:
            value, sem = getattr(self.value, name), getattr(self.sem, name)
            return f"{name} {value:.3g}" + (f" ± {sem:.1g}" if sem > 0 else "")

        w = ", ".join(
            f"{value:.3g}" + (f" ± {sem:.1g}" if sem > 0 else "")
            for value, sem in zip(self.value.wasserstein, self.sem.wasserstein, strict=True)
        )
        return ", ".join([shown("tv"), shown("hellinger"), shown("kl"), f"wasserstein {w}"])


def compare(p: Any, q: Any) -> Comparison:
    """The distances between two densities on the same grid, or one of them on a finer grid with the same edges.

    Mass outside the grid counts as one more cell in all but the Wasserstein distance, which compares the laws within
    the grid. Laws are compared as cell masses: differences inside a cell are not seen, so a coarser grid gives smaller
    distances and less sampling noise.

    Standard errors come from a jackknife over the independent groups of samples in `Density.replicates`. Raises
    `ValueError` if the grids do not fit.
    """
    for name, law in (("p", p), ("q", q)):
        if not isinstance(law, Density):
            raise TypeError(
                f"`{name}` must be a `solvers.Density`, got {type(law).__name__}. See `Density.from_samples`."
            )
    p, q = _on_common_grid(p, q)
    value = _distances(p, q)
    errors = [_jackknife(p, lambda r: _distances(r, q)), _jackknife(q, lambda r: _distances(p, r))]
    return Comparison(value, _combined(errors, p.grid.ndim), _floor(p, q))


def total_variation(p: Float[np.ndarray, " n"], q: Float[np.ndarray, " n"]) -> float:
    """½ Σ |p - q| of two vectors of masses."""
    return 0.5 * float(np.abs(p - q).sum())


def _distances(p: Density, q: Density) -> Distances:
    a, b = _masses(p), _masses(q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        terms = np.where(a > 0, a * np.log(a / b), 0.0)
    affinity = float(np.sqrt(a * b).sum())
    return Distances(
        tv=total_variation(a, b),
        hellinger=float(np.sqrt(max(0.0, 1 - affinity))),
        kl=float(terms.sum()),
        wasserstein=np.array([_wasserstein(p.marginal(k), q.marginal(k)) for k in range(p.grid.ndim)]),
    )


def _wasserstein(p: Density, q: Density) -> float:
    (edges,) = p.grid.edges
    if p.mass.sum() == 0 or q.mass.sum() == 0:
        return np.nan
    gap = p.cdf() / p.mass.sum() - q.cdf() / q.mass.sum()
    return float(np.trapezoid(np.abs(gap), edges))


def _masses(p: Density) -> Float[np.ndarray, " n"]:
    return np.append(p.mass.ravel(), p.outside)


def _on_common_grid(p: Density, q: Density) -> tuple[Density, Density]:
    if p.grid.ndim != q.grid.ndim:
        raise ValueError(f"`p` and `q` must have equally many axes, but they have {p.grid.ndim} and {q.grid.ndim}.")
    if p.grid.size == q.grid.size:
        return p, q.on(p.grid)
    return (p.on(q.grid), q) if p.grid.size > q.grid.size else (p, q.on(p.grid))


def _groups(p: Density) -> list[Density]:
    """The law without each of its groups of samples."""
    if p.replicates is None:
        return []
    r = p.replicates
    rest = np.clip((r.sum(axis=0) - r) / (len(r) - 1), 0, None)
    return [Density(p.grid, mass, _complement(mass.sum())) for mass in rest]


def _jackknife(p: Density, distances: Callable[[Density], Distances]) -> Distances | None:
    left_out = [distances(r) for r in _groups(p)]
    n = len(left_out)
    if n == 0:
        return None

    def spread(values) -> Float[np.ndarray, "..."]:
        values = np.asarray(values)
        if not np.all(np.isfinite(values)):
            return np.full(values.shape[1:], np.nan)
        return np.asarray(np.sqrt((n - 1) / n * np.sum((values - values.mean(axis=0)) ** 2, axis=0)))

    return Distances(
        tv=float(spread([d.tv for d in left_out])),
        hellinger=float(spread([d.hellinger for d in left_out])),
        kl=float(spread([d.kl for d in left_out])),
        wasserstein=spread([d.wasserstein for d in left_out]),
    )


def _combined(errors: list[Distances | None], axes: int) -> Distances:
    found = [e for e in errors if e is not None]
    return Distances(
        tv=float(np.sqrt(sum(e.tv**2 for e in found))),
        hellinger=float(np.sqrt(sum(e.hellinger**2 for e in found))),
        kl=float(np.sqrt(sum(e.kl**2 for e in found))),
        wasserstein=np.sqrt(sum((e.wasserstein**2 for e in found), start=np.zeros(axes))),
    )


def _floor(p: Density, q: Density) -> Distances:
    """The distances that Gaussian sampling errors of the masses have on average, when the laws are the same.

    With s_i the standard error of mass i: E|N(0, s)| = s sqrt(2/π); and to second order KL is Σ s²/2q and the squared
    Hellinger distance Σ s²/8q.
    """
    half_normal = np.sqrt(2 / np.pi)
    variance = sum(_variance(_groupwise(r)) for r in (p, q))
    q_mass = _masses(q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = float(np.sum(np.where(variance > 0, variance / q_mass, 0.0)))
    wasserstein = [
        float(np.trapezoid(half_normal * np.sqrt(sum(_cdf_variance(r.marginal(k)) for r in (p, q))), p.grid.edges[k]))
        for k in range(p.grid.ndim)
    ]
    return Distances(
        tv=0.5 * half_normal * float(np.sqrt(variance).sum()),
        hellinger=float(np.sqrt(relative / 8)),
        kl=relative / 2,
        wasserstein=np.array(wasserstein),
    )


def _groupwise(p: Density) -> Float[np.ndarray, "r n"]:
    """The masses of each group of samples, that outside the grid last; no rows for a law that was not sampled."""
    if p.replicates is None:
        return np.zeros((0, p.grid.size + 1))
    inside = p.replicates.reshape(len(p.replicates), -1)
    return np.column_stack([inside, [_complement(total) for total in inside.sum(axis=1)]])


def _complement(total: float) -> float:
    """What is missing to 1, or 0 if that is rounding."""
    return float(1 - total) if 1 - total > _rounding else 0.0


# Sums of masses differ from 1 by this much without meaning it.
_rounding = 1e-12


def _variance(groups: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " n"]:
    """The variance of the mean of the groups."""
    return groups.var(axis=0, ddof=1) / len(groups) if len(groups) else np.zeros(groups.shape[1])


def _cdf_variance(p: Density) -> Float[np.ndarray, " n"]:
    if p.replicates is None:
        return np.zeros(p.grid.size + 1)
    cdf = np.cumsum(p.replicates, axis=1)
    cdf = np.column_stack([np.zeros(len(cdf)), cdf / cdf[:, -1:]])
    return _variance(cdf)
