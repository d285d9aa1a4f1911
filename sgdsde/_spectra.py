"""Spectra of symmetric matrices that are known by their products with vectors: Lanczos runs and what they tell."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.linalg import eigh_tridiagonal

# A residual below so many units of rounding of the largest coefficient means that the Krylov space is exhausted.
_exhausted = 100


class Estimate(eqx.Module):
    """A number and its standard error, which is 0 if the number is exact."""

    value: float
    sem: float = 0.0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.5g}" + (f" ± {self.sem:.1g}" if self.sem > 0 else "")

    def __mul__(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.sem * abs(factor))


class Spectrum(eqx.Module):
    """What is known of the eigenvalues λ_1 ≥ ... ≥ λ_d of a symmetric matrix.

    `trace` is Σ λ_k, `norm` the Frobenius norm √(Σ λ_k²). `top` are the largest eigenvalues, `top_errors` bounds: an
    eigenvalue is within so much of each. `lowest` is λ_d, or unless exact an upper bound that is close as a rule.

    `nodes` and `weights` are the spectral density (1/d) Σ_k δ(λ - λ_k) as sums of points: one row for each independent
    estimate, a single one if exact. Multiple eigenvalues come once in `top` unless exact, but rightly in the density.
    """

    trace: Estimate
    norm: Estimate
    top: Float[np.ndarray, " k"]
    top_errors: Float[np.ndarray, " k"]
    lowest: float
    nodes: Float[np.ndarray, "runs n"]
    weights: Float[np.ndarray, "runs n"]

    def density(self, at: Any, width: float) -> Float[np.ndarray, "n"]:
        """The spectral density at the values `at`, every point smoothed to a normal law of that standard deviation."""
        z = (np.asarray(at, float)[:, None, None] - self.nodes) / width
        kernel = np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi))
        return np.mean(np.sum(self.weights * kernel, axis=2), axis=1)

    def share(self, low: float, high: float = np.inf) -> Estimate:
        """The share of eigenvalues in [low, high]."""
        shares = np.sum(self.weights, axis=1, where=(self.nodes >= low) & (self.nodes <= high))
        return Estimate(float(np.mean(shares)), _sem(shares))


def exact_spectrum(matrix: Float[np.ndarray, "d d"], top: int) -> tuple[Spectrum, Float[np.ndarray, "d k"]]:
    """The spectrum of a matrix, and the eigenvectors of its largest eigenvalues."""
    values, vectors = np.linalg.eigh(np.asarray(matrix, np.float64))
    spectrum = Spectrum(
        trace=Estimate(float(np.sum(values))),
        norm=Estimate(float(np.linalg.norm(values))),
        top=values[::-1][:top],
        top_errors=np.zeros(top),
        lowest=float(values[0]),
        nodes=values[None],
        weights=np.full((1, len(values)), 1 / len(values)),
    )
    return spectrum, vectors[:, ::-1][:, :top]


class Krylov(eqx.Module):
    """A Lanczos run: the tridiagonal matrix of A on the Krylov space of its start, and a basis of that space."""

    diagonal: Float[np.ndarray, " m"]
    beside: Float[np.ndarray, " m"]
    basis: Float[Array, "steps d"]

    def quadrature(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Nodes and weights of the spectral measure of the start vector, of mass 1."""
        nodes, vectors = eigh_tridiagonal(self.diagonal, self.beside[:-1])
        return nodes, vectors[0] ** 2

    def top(self, count: int) -> tuple[np.ndarray, np.ndarray, Float[Array, "d k"]]:
        """The largest eigenvalues, bounds of their errors, and their eigenvectors, fewer if the space is smaller."""
        nodes, vectors = eigh_tridiagonal(self.diagonal, self.beside[:-1])
        chosen = np.argsort(-nodes)[:count]
        errors = np.abs(self.beside[-1] * vectors[-1, chosen])
        coefficients = jnp.asarray(vectors[:, chosen], self.basis.dtype)
        return nodes[chosen], errors, self.basis[: len(nodes)].T @ coefficients


def lanczos(
    product: Callable, arguments: tuple, start: Float[Array, " d"], away: Float[Array, "d k"], steps: int
) -> Krylov:
    """Lanczos with full reorthogonalisation for A v = product(*arguments, v), A compressed to the complement of `away`.

    The columns of `away` are orthonormal, or 0. Ends early, with fewer than `steps` steps, if the space is exhausted.
    """
    diagonal, beside, basis = _lanczos(product, arguments, start, away, steps)
    diagonal, beside = np.asarray(diagonal, np.float64), np.asarray(beside, np.float64)
    end = int(np.argmax(beside == 0)) + 1 if np.any(beside == 0) else steps
    return Krylov(diagonal[:end], beside[:end], basis)


@eqx.filter_jit
def _lanczos(product: Callable, arguments: tuple, start: Array, away: Array, steps: int):
    def unit(w, scale):
        size = jnp.linalg.norm(w)
        size = jnp.where(size > _exhausted * jnp.finfo(w.dtype).eps * scale, size, 0)
        return size, jnp.where(size > 0, w / jnp.where(size > 0, size, 1), 0)

    def step(k, carried):
        diagonal, beside, basis, q = carried
        basis = basis.at[k].set(q)
        w = _without(away, product(*arguments, q))
        diagonal = diagonal.at[k].set(q @ w)
        for _ in range(2):
            w = _without(away, w - basis.T @ (basis @ w))
        size, q = unit(w, jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(beside)))
        return diagonal, beside.at[k].set(size), basis, q

    zeros = jnp.zeros(steps, start.dtype)
    _, q = unit(_without(away, start), jnp.linalg.norm(start))
    return lax.fori_loop(0, steps, step, (zeros, zeros, jnp.zeros((steps, start.size), start.dtype), q))[:3]


def _without(away: Float[Array, "d k"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    return v - away @ (away.T @ v)


def signs(key: Any, like: Float[Array, " d"]) -> Float[Array, " d"]:
    """A Rademacher vector: v vᵀ has the mean I."""
    return jax.random.rademacher(key, like.shape, like.dtype)


def jackknifed(function: Callable, base: Float[np.ndarray, " q"], samples: Float[np.ndarray, "n q"]) -> Estimate:
    """function(base + mean of the samples), with the jackknife's standard error."""
    n = len(samples)
    total = np.sum(samples, axis=0)
    value = float(function(base + total / n))
    left_out = np.array([function(base + (total - sample) / (n - 1)) for sample in samples])
    return Estimate(value, float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))))


def _sem(values: Float[np.ndarray, " n"]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
