"""The one type for probability densities: particle histograms and Fokker-Planck solutions are both a `Density`."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ._tracing import Numbers, Static, is_traced, namespace
from .diagnosis import Diagnosis, accuracy, judged, mass_conserved, mass_lost, unknown
from .grid import Grid, evaluate, interpolated
from .provenance import Provenance, made_by
from .result import AbstractResult


class Density(AbstractResult):
    """A probability law on R^d, as the mass in each cell of a grid and the mass outside it.

    `mass.sum() + outside` is 1. For a law estimated from samples, `replicates` holds the masses of independent groups
    of samples, one group per row; standard errors come from how much these differ.

    For a law that was computed on the grid, `error` may hold an estimate of the discretisation error of each mass, its
    absolute value; its sum estimates the L1 error. `beyond` estimates the mass that the box cuts off: what would lie
    beyond its walls if there were none. None where nothing is known.

    Masses may be JAX's inside `jax.grad`, `jit` or `vmap`: then `expect`, `pdf`, `marginal`, `cdf` and `at` are
    functions of them that JAX differentiates, and values are not checked.
    """

    grid: Grid
    mass: Float[Numbers, "*shape"]
    outside: Any
    replicates: Float[np.ndarray, "r *shape"] | None
    error: Float[np.ndarray, "*shape"] | None
    beyond: float | None
    provenance: Provenance | None = eqx.field(static=True)

    def __init__(
        self,
        grid: Grid,
        mass,
        outside: float = 0.0,
        replicates=None,
        error=None,
        beyond: float | None = None,
        provenance: Provenance | None = None,
    ):
        self.grid = grid
        traced = is_traced(mass, outside)
        self.mass = jnp.asarray(mass) if traced else np.asarray(mass, dtype=np.float64)
        self.outside = outside if traced else float(outside)
        self.replicates = None if replicates is None else np.asarray(replicates, dtype=np.float64)
        self.error = None if error is None else np.asarray(error, dtype=np.float64)
        self.beyond = None if beyond is None else float(beyond)
        self.provenance = provenance
        if self.mass.shape != grid.shape:
            raise ValueError(f"`mass` must have the shape of the grid, {grid.shape}, but got {self.mass.shape}.")
        if not traced:
            self._check_values()
        if self.replicates is not None and (self.replicates.shape[1:] != grid.shape or len(self.replicates) < 2):
            raise ValueError(
                f"`replicates` must have shape (r, {', '.join(map(str, grid.shape))}) with r > 1, got "
                f"{self.replicates.shape}."
            )
        if self.error is not None and self.error.shape != grid.shape:
            raise ValueError(f"`error` must have the shape of the grid, {grid.shape}, but got {self.error.shape}.")

    def _check_values(self) -> None:
        if not np.all(np.isfinite(self.mass)) or np.any(self.mass < 0) or not 0 <= self.outside < np.inf:
            raise ValueError(
                f"`mass` and `outside` must be finite and not negative, got a smallest mass of {np.min(self.mass):.6g} "
                f"and outside={self.outside:.6g}."
            )
        total = self.mass.sum() + self.outside
        if abs(total - 1) > _total_tolerance:
            raise ValueError(
                f"`mass` and `outside` must sum to 1, but their sum is {total:.9g}. Values of a density become masses "
                "when multiplied by `grid.volumes`."
            )

    @staticmethod
    def from_function(grid: Grid, f: Callable) -> "Density":
        """The density proportional to the JAX function `f` of one point (d,), normalised on the grid.

        Cell masses are Gauss-Legendre averages of `f`, three nodes an axis.
        """
        mass = grid.cell_averages(f) * grid.volumes
        if not np.all(np.isfinite(mass)) or np.any(mass < 0) or not mass.sum() > 0:
            raise ValueError(
                "`f` must be finite, not negative and not zero everywhere on the grid; its cell masses reach from "
                f"{np.min(mass):.6g} to {np.max(mass):.6g}."
            )
        return Density(grid, mass / mass.sum())

    @staticmethod
    def from_samples(grid: Grid, xs: Shaped[Array, "..."] | Shaped[np.ndarray, "..."]) -> "Density":
        """The histogram of independent samples, shape (n, d), or (n,) on a grid of one axis."""
        xs = np.asarray(xs, dtype=np.float64)
        if xs.ndim == 1 and grid.ndim == 1:
            xs = xs[:, None]
        if xs.ndim != 2 or xs.shape[1] != grid.ndim or len(xs) == 0:
            raise ValueError(f"`xs` must have shape (n, {grid.ndim}) with n > 0, got {xs.shape}.")
        if not np.all(np.isfinite(xs)):
            raise ValueError("`xs` must be finite; drop or repair the samples that are not.")
        groups = min(_groups, len(xs))
        counts = np.stack([np.histogramdd(xs[g::groups], bins=grid.edges)[0] for g in range(groups)])
        sizes = np.array([len(xs[g::groups]) for g in range(groups)])
        replicates = counts / sizes.reshape(-1, *[1] * grid.ndim) if groups > 1 else None
        # Counted, not 1 - mass: exactly 0 when every sample is inside.
        return Density(grid, counts.sum(0) / len(xs), (len(xs) - counts.sum()) / len(xs), replicates)

    @staticmethod
    def point(grid: Grid, x) -> "Density":
        """All mass in the cell that contains the point x, shape (d,)."""
        x = np.atleast_1d(np.asarray(x, dtype=np.float64))
        if x.shape != (grid.ndim,):
            raise ValueError(f"`x` must have shape ({grid.ndim},), got {x.shape}.")
        if any(not e[0] <= c <= e[-1] for c, e in zip(x, grid.edges, strict=True)):
            raise ValueError(f"`x` must lie in the grid, {grid}, but got {x}.")
        mass = np.zeros(grid.shape)
        index = [np.searchsorted(e[1:-1], c, side="right") for c, e in zip(x, grid.edges, strict=True)]
        mass[tuple(index)] = 1.0
        return Density(grid, mass)

    @property
    def pdf(self) -> Float[Numbers, "*shape"]:
        """Mass per volume in each cell: the density at the cell centres, to second order."""
        return self.mass / self.grid.volumes

    @property
    def standard_error(self) -> Float[np.ndarray, "*shape"] | None:
        """The standard error of each cell's mass, or None for a law that was not sampled."""
        if self.replicates is None:
            return None
        return self.replicates.std(axis=0, ddof=1) / np.sqrt(len(self.replicates))

    def expect(self, fn: Callable) -> Float[Numbers, "..."]:
        """E fn(X) over the mass in the grid, for a JAX function of one point (d,).

        Within a cell the density is taken to be linear, with the slope of a parabola through it and its neighbours, and
        `fn` is evaluated at two Gauss-Legendre nodes an axis: the error is of fourth order in the width of the cells.
        The mass of a cell times the value at its centre would miss a variance by width²/12 (Sheppard's correction).

        Mass outside the grid contributes nothing.
        """
        values = evaluate(fn, _quadrature_points(self.grid))
        shares = _compiled_shares if is_traced(self.mass) else _shares
        return _weighted(shares(Static(self.grid), self.mass), values)

    def marginal(self, axis: int) -> "Density":
        """The law of one coordinate, on the grid of that axis; `error` sums to a bound on its own."""
        grid = self.grid.axis(axis)
        others = tuple(k for k in range(self.grid.ndim) if k != axis % self.grid.ndim)
        replicates = None if self.replicates is None else self.replicates.sum(axis=tuple(k + 1 for k in others))
        error = None if self.error is None else self.error.sum(axis=others)
        return Density(grid, self.mass.sum(axis=others), self.outside, replicates, error, self.beyond, self.provenance)

    def cdf(self) -> Float[Numbers, "..."]:
        """The mass below each edge, shape `shape[k] + 1` along axis k: P(X_1 ≤ e_1, ..., X_d ≤ e_d) within the grid.

        The last entry is the mass in the grid; mass outside is not counted.
        """
        xp = namespace(self.mass)
        total = xp.pad(self.mass, [(1, 0)] * self.grid.ndim)
        for k in range(self.grid.ndim):
            total = xp.cumsum(total, axis=k)
        return total

    def at(self, x) -> Float[Numbers, "..."]:
        """The density at the point x (d,) or points (n, d), or n > 1 numbers on one axis.

        Interpolated linearly between cell centres.

        Constant from the last centre to the edge, and 0 outside the grid.
        """
        x = jnp.asarray(x) if is_traced(x) else np.asarray(x, dtype=np.float64)
        if self.grid.ndim == 1 and (x.ndim == 0 or (x.ndim == 1 and x.size != 1)):
            x = x[..., None]
        if x.ndim not in (1, 2) or x.shape[-1] != self.grid.ndim:
            raise ValueError(f"`x` must have shape ({self.grid.ndim},) or (n, {self.grid.ndim}), got {x.shape}.")
        if not is_traced(x) and np.any(np.isnan(x)):
            raise ValueError("`x` must hold numbers, but some are NaN.")
        lows, highs = (np.array([e[end] for e in self.grid.edges]) for end in (0, -1))
        values = interpolated(self.grid.centres, self.pdf, x.reshape(-1, self.grid.ndim)).reshape(x.shape[:-1])
        return namespace(values).where(((lows <= x) & (x <= highs)).all(axis=-1), values, 0.0)

    def on(self, grid: Grid) -> "Density":
        """The same law on a coarser grid, whose edges are all edges of this one; mass left out goes to `outside`."""
        if is_traced(self.mass):
            raise NotImplementedError(
                "`on` sums masses that are known. While JAX traces them (`jax.grad`, `jit` or `vmap`) use `cdf`, whose "
                "differences are the masses of any cells."
            )
        mass, replicates, error = self.mass, self.replicates, self.error
        left_out = np.ones(self.grid.shape, bool)
        if grid.ndim != self.grid.ndim:
            raise ValueError(f"`grid` must have {self.grid.ndim} axes like this density's, but it has {grid.ndim}.")
        spans = []
        for k, (fine, coarse) in enumerate(zip(self.grid.edges, grid.edges, strict=True)):
            # The cell whose edges enclose the coarse edge, then the nearer of the two.
            cell = np.clip(np.searchsorted(fine, coarse) - 1, 0, fine.size - 2)
            index = np.where(coarse - fine[cell] < fine[cell + 1] - coarse, cell, cell + 1)
            apart = np.abs(fine[index] - coarse) > _edge_tolerance * (fine[cell + 1] - fine[cell])
            if np.any(apart) or np.any(np.diff(index) < 1):
                raise ValueError(
                    f"`grid` must have only edges that this density's grid has, but axis {k} does not. "
                    "Build one grid from the other, or compute the density on the grid that you need."
                )
            spans.append(slice(index[0], index[-1]))
            mass = np.add.reduceat(_cut(mass, k, index), index[:-1] - index[0], axis=k)
            if error is not None:
                error = np.add.reduceat(_cut(error, k, index), index[:-1] - index[0], axis=k)
            if replicates is not None:
                replicates = np.add.reduceat(_cut(replicates, k + 1, index), index[:-1] - index[0], axis=k + 1)
        # Summed itself, not as what is missing to 1: rounding would put mass where there is none.
        left_out[tuple(spans)] = False
        outside = self.outside + self.mass[left_out].sum()
        return Density(grid, mass, outside, replicates, error, self.beyond, self.provenance)

    def diagnose(self) -> Diagnosis:
        """Whether the total is 1, whether mass is lost at the walls or outside, and how large errors are."""
        total = float(self.mass.sum() + self.outside)
        found = [mass_conserved(total - 1), mass_lost("outside", float(self.outside), "outside the grid")]
        if self.beyond is not None:
            found.append(mass_lost("cut off", self.beyond, "cut off by the walls of the box"))
        if self.error is not None:
            found.append(accuracy("error", 1.0, float(self.error.sum()), "Use cells half as wide"))
        elif self.standard_error is not None:
            sampled = 0.5 * float(self.standard_error.sum())
            text = f"sampling changes about {sampled:.2g} of the mass"
            found.append(judged("error", sampled < _noisy, text, "Use more samples, or wider cells"))
        else:
            found.append(unknown("error", "no error estimate and no groups of samples"))
        return Diagnosis(tuple(found))

    def plot(self, ax: Any = None) -> Any:
        """Draws the density on `ax` or new axes, which are returned: a curve, colours over a plane, or a marginal."""
        # Drawing knows densities.
        from .drawing import draw_density

        return draw_density(self, ax)

    def __str__(self) -> str:
        if is_traced(self.mass):
            return f"Density on {self.grid}, with masses that JAX traces"
        sampled = "" if self.replicates is None else f", sampled in {len(self.replicates)} groups"
        near = "" if self.error is None else f", error about {self.error.sum():.2g}"
        cut = "" if self.beyond is None else f", about {self.beyond:.2g} cut off by the box"
        return (
            f"Density on {self.grid}: mass {self.mass.sum():.6g} in the grid, {self.outside:.3g} "
            f"outside{sampled}{near}{cut}{made_by(self)}"
        )


# Independent groups into which samples are divided for standard errors: 31 degrees of freedom.
_groups = 32

# A histogram of which sampling changes that part is too fine for its samples.
_noisy = 0.1

# Sums of float32 masses over a million cells still pass; values of a density, taken for masses, do not.
_total_tolerance = 1e-4

# Edges of two grids count as one when they agree to this fraction of a cell: far above rounding, and so little that
# the mass between them does not matter.
_edge_tolerance = 1e-6


# The signs of the offsets of the nodes of `expect` from the middles of a cell, one after another.
def _signs(grid: Grid) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 1), repeat=grid.ndim))


def _offsets(grid: Grid) -> list[Float[np.ndarray, " _"]]:
    return [np.diff(e) * (0.5 / np.sqrt(3)) for e in grid.edges]


def _quadrature_points(grid: Grid) -> Float[np.ndarray, "n d"]:
    middles = [0.5 * (e[1:] + e[:-1]) for e in grid.edges]
    along = [[m + s * o for m, s, o in zip(middles, signs, _offsets(grid), strict=True)] for signs in _signs(grid)]
    return np.concatenate([np.stack(np.meshgrid(*a, indexing="ij"), axis=-1).reshape(-1, grid.ndim) for a in along])


def _shares(static: Static, mass: Float[Numbers, "..."]) -> Float[Numbers, " n"]:
    """The mass at each of the quadrature points."""
    grid, xp, result = static.value, namespace(mass), []
    slopes = [_slope(mass / grid.volumes, grid, k) * grid.volumes for k in range(grid.ndim)]
    for signs in _signs(grid):
        share = mass
        for k, (sign, offset) in enumerate(zip(signs, _offsets(grid), strict=True)):
            share = share + sign * offset.reshape(-1, *[1] * (grid.ndim - k - 1)) * slopes[k]
        result.append(share.ravel() / 2**grid.ndim)
    return xp.concatenate(result)


_compiled_shares = jax.jit(_shares, static_argnums=0)


def _slope(pdf: Float[Numbers, "..."], grid: Grid, k: int) -> Float[Numbers, "..."]:
    """The derivative of cell averages along axis k, in the middle of each cell, of the parabola through three of them.

    0 in a single cell.
    """
    xp = namespace(pdf)
    if grid.shape[k] == 1:
        return xp.zeros_like(pdf)
    h = np.diff(0.5 * (grid.edges[k][1:] + grid.edges[k][:-1]))
    step = xp.diff(xp.moveaxis(pdf, k, -1), axis=-1) / h
    # Derivatives of a parabola lie on a straight line.
    inner = (h[1:] * step[..., :-1] + h[:-1] * step[..., 1:]) / (h[1:] + h[:-1])
    if grid.shape[k] == 2:
        first = last = step
    else:
        first, last = 2 * step[..., :1] - inner[..., :1], 2 * step[..., -1:] - inner[..., -1:]
    return xp.moveaxis(xp.concatenate([first, inner, last], axis=-1), -1, k)


def _weighted(weights: Float[Numbers, " n"], values: Shaped[Numbers, "n ..."]) -> Any:
    xp = namespace(weights, values)
    if xp is jnp and not jnp.issubdtype(values.dtype, jnp.inexact):
        values = values.astype(weights.dtype)
    return xp.asarray(xp.tensordot(weights, values, axes=1))


def _cut(mass: np.ndarray, axis: int, index: np.ndarray) -> np.ndarray:
    return np.take(mass, np.arange(index[0], index[-1]), axis=axis)
