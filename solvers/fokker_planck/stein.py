r"""Whether a law is stationary under a process, wherever it comes from: E_ρ[Lφ] = 0 for test functions φ.

Lφ = b·∇φ + D:∇∇φ. Over a box, with the current J = b ρ - ∇·(D ρ) and the normal n of its faces,

    ∫ ρ Lφ dx = ∮ (φ J·n + ρ n·D ∇φ) dS    for a stationary ρ,

so that only faces stand between the law and the identity. The test functions are x_i and x_i x_j, about the middle of
the law, and bounded ones that vanish at the faces together with their derivatives: w, w t_i and w t_i t_j with
t = x / sqrt(s² + x²), s the width of the law, and w = Π (1 - u_k²)³, u from -1 to 1 across the box. The latter can be
used for power laws without moments, for laws between walls and for samples of which some lie outside.

Only drift, noise and the masses enter: no closed form, and not the matrix of a generator.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..axes import axes_or_new
from ..density import Density
from ..diagnosis import Diagnosis, judged
from ..drawing import guide, solved
from ..grid import Grid, evaluate
from ..process import AbstractDiffusion
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .coefficients import check_process

# A sampled residual may be as many standard errors from zero.
_standard_errors = 4.0

# And as many times the estimated discretisation error, which may itself be off.
_errors = 2.0

# A test function judges a law if its residual is known to this fraction of its scale.
_judges = 0.1

# Rounding of the sum over cells, as a fraction of the scale.
_rounding = 1e-13


class Stein(AbstractResult):
    """The residuals E_ρ[Lφ] of a law, one for each test function of `names`, in units of φ per time.

    `scale` is E_ρ[|b·∇φ| + |D:∇∇φ|], what a residual is to be compared with: a law that has nothing to do with the
    process has residuals as large. `error` is what a residual of a stationary law may be: four standard errors if it
    was sampled, twice the effect of its `error` if it has one, the error of the sum over cells, which is taken to be
    what cells twice as wide change, and a bound on the boundary terms.

    `holds` if no residual is beyond its error, and at least one of these errors is small (a tenth of the scale).
    """

    names: tuple[str, ...] = eqx.field(static=True)
    residual: Float[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """Whether test functions can judge the law, and each residual against its error."""
        judges = int(np.sum(self.error <= _judges * self.scale))
        text = f"{judges} of {len(self.names)} test functions are known well enough to judge"
        found = [judged("judges", judges > 0, text, "Use finer cells, or more samples")]
        for name, r, s, e in zip(self.names, self.residual, self.scale, self.error, strict=True):
            change = "The law is not stationary, or its error is larger than it says"
            found.append(judged(name, abs(r) <= e, f"residual {r / s if s > 0 else r:.2g} of its scale", change))
        return Diagnosis(tuple(found))

    def plot(self, ax: Any = None) -> Any:
        """Draws residuals with their errors, as fractions of their scale, on `ax` or new axes, which are returned."""
        ax = axes_or_new(ax)
        scale = np.where(self.scale > 0, self.scale, 1.0)
        places = np.arange(len(self.names))
        ax.errorbar(places, self.residual / scale, self.error / scale, color=solved, marker="s", linestyle="")
        ax.axhline(0, color=guide, linewidth=0.8)
        ax.set_xticks(places, self.names, rotation=90)
        ax.set(ylabel="residual / scale")
        return ax

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the law, and something could."""
        judges = self.error <= _judges * self.scale
        return bool(np.any(judges) and np.all(np.abs(self.residual) <= self.error))

    def __str__(self) -> str:
        rows = [
            f"  {name:10} {r / s: .2e} ± {e / s:.1e}{'' if abs(r) <= e else '  beyond its error'}"
            for name, r, s, e in zip(self.names, self.residual, self.scale, self.error, strict=True)
            if s > 0
        ]
        verdict = "nothing speaks against the law" if self.holds else "the law is not shown to be stationary"
        return "\n".join([f"Stein: {verdict}; residuals as a fraction of their scale{made_by(self)}", *rows])


@recorded("process")
def stein(process: Any, p: Any) -> Stein:
    """Holds the law `p` against `process` by test functions; for laws that were computed, sampled, or written down.

    A law may pass with an error of about its `error`, and small features that no low moment sees. Where grid or
    samples are too few to judge, `holds` is False.

    Raises `TypeError` if `p` is no `Density`, and otherwise as `assemble` does.
    """
    if not isinstance(p, Density):
        raise TypeError(
            f"`p` must be a `Density`, got {type(p).__name__}. For samples: `Density.from_samples(grid, xs)`."
        )
    check_process(process, p.grid)
    names, functions = _test_functions(p)
    n, d = len(names), p.grid.ndim

    def parts(x):
        t = jnp.zeros((), x.dtype)
        slope, bend = jax.jacfwd(functions)(x), jax.jacfwd(jax.jacfwd(functions))(x)
        tensor = process.diffusion(t, x)
        return slope @ process.drift(t, x), jnp.tensordot(bend, tensor, axes=2)

    def both(x):
        first, second = parts(x)
        return jnp.concatenate([first + second, jnp.abs(first) + jnp.abs(second)])

    residual, scale = np.split(p.expect(both), 2)
    coarse = p.on(_wide(p.grid)).expect(both)[:n]
    values = evaluate(both, p.grid.points.reshape(-1, d))[:, :n]
    error = np.abs(residual - coarse) + _boundary(process, p, functions, n) + _rounding * np.abs(scale)
    if p.error is not None:
        error = error + _errors * p.error.ravel() @ np.abs(values)
    if p.replicates is not None:
        groups = p.replicates.reshape(len(p.replicates), -1) @ values
        error = error + _standard_errors * groups.std(axis=0, ddof=1) / np.sqrt(len(groups))
    return Stein(names, residual, np.abs(scale), error)


def _test_functions(p: Density) -> tuple[tuple[str, ...], Callable]:
    d = p.grid.ndim
    quartiles = np.array([_quartiles(p.marginal(k)) for k in range(d)])
    middle, width = jnp.asarray(quartiles[:, 1]), jnp.asarray(0.5 * (quartiles[:, 2] - quartiles[:, 0]))
    low, high = (jnp.asarray([e[i] for e in p.grid.edges]) for i in (0, -1))
    pairs = [(i, j) for i in range(d) for j in range(i, d)]
    i, j = (np.array(index) for index in zip(*pairs, strict=True))
    labels = [f"x{a}" for a in range(d)] + [f"x{a} x{b}" for a, b in pairs]
    bounded = ["w", *(f"w {label.replace('x', 't')}" for label in labels)]

    def functions(x):
        y = x - middle
        t = y / jnp.sqrt(width**2 + y**2)
        w = jnp.prod(1 - ((2 * x - low - high) / (high - low)) ** 2) ** 3
        return jnp.concatenate([y, y[i] * y[j], w[None], w * t, w * t[i] * t[j]])

    return (*labels, *bounded), functions


def _quartiles(p: Density) -> Float[np.ndarray, " 3"]:
    below = p.cdf()
    found = np.interp(below[-1] * np.array([0.25, 0.5, 0.75]), below, p.grid.edges[0])
    # At least a cell apart: a law in one cell has no width of its own.
    cell = np.diff(p.grid.edges[0])[min(int(np.argmax(p.mass)), p.mass.size - 1)]
    return np.array([min(found[0], found[1] - cell), found[1], max(found[2], found[1] + cell)])


def _wide(grid: Grid) -> Grid:
    # Two cells made one, but for the last of an odd number.
    return Grid([e[np.unique(np.append(np.arange(0, e.size, 2), e.size - 1))] for e in grid.edges])


def _boundary(process: AbstractDiffusion, p: Density, functions: Callable, n: int) -> Float[np.ndarray, " n"]:
    """∮ ρ (|φ b·n| + |n·D ∇φ|) dS, with the densities of the outermost cells: no less than |∮ (φ J·n + ρ n·D ∇φ)|
    where the law falls off."""
    total = np.zeros(n)

    def at(x):
        t = jnp.zeros((), x.dtype)
        drift = jnp.abs(jnp.outer(functions(x), process.drift(t, x)))
        return drift + jnp.abs(jax.jacfwd(functions)(x) @ process.diffusion(t, x))

    for k, e in enumerate(p.grid.edges):
        for side in (0, -1):
            points = np.take(p.grid.points, [side], axis=k).reshape(-1, p.grid.ndim).copy()
            points[:, k] = e[side]
            layer = np.take(p.mass, [side], axis=k).ravel() / np.diff(e)[side]
            total += layer @ np.where(layer[:, None] > 0, evaluate(at, points)[:, :, k], 0.0)
    return total
