"""Which minimisers small noise prefers, on a manifold of minimisers given by a chart: the limit laws of SGD.

`chart` is a JAX function from coordinates φ (n,) to points of parameter space (d,), all of them minimisers of the loss
with one value; `grid` is over φ, and the result is the law of φ: densities with respect to volume on the manifold,
times the volume element √det JᵀJ of the chart. H is the Hessian in the k = d - n directions across the manifold.

The limit laws of constant noise (T ↓ 0) and of loss-proportional noise (κ ↓ κ_c = 2/(k-2), k ≥ 3) are the same law,
∝ det(H)^{-1/2}: any law that is a function of f alone has it, because the level tubes of f do. They differ at a finite
temperature.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from solvers import Density, Grid
from solvers.grid import evaluate

from .._checks import scalar_valued
from ._checked import positive
from .existence import critical_temperature
from .sphere import sphere_mean


def limit_density(loss: Callable, chart: Callable, grid: Grid) -> Density:
    """The limit law ∝ det(H)^{-1/2} on the manifold: of the Gibbs law as T → 0, and of f^(-p) as κ ↓ κ_c.

    It is also, at every κ > κ_c, how f^(-p) weighs the level tube {f < δ}, δ → 0. Flat minima are preferred.

    `ValueError` if the chart leaves the minimisers (the gradient is not 0, the loss not constant, a curvature across
    not positive) or is not regular. Needs 64-bit JAX.
    """
    return _law(loss, chart, grid, lambda curvatures: np.exp(-0.5 * np.sum(np.log(curvatures), axis=-1)))


def sphere_density(loss: Callable, chart: Callable, grid: Grid) -> Density:
    """The law ∝ ∫_{S^{k-1}} (νᵀHν)^{-k/2} dν, as the limit of f^(-p) is usually derived; equal to `limit_density`.

    Computed from the integral, with no determinant, so that the two can be compared.
    """
    return _law(loss, chart, grid, lambda curvatures: _sphere_means(curvatures, 0.5 * curvatures.shape[-1]))


def tube_density(loss: Callable, chart: Callable, grid: Grid, temperature) -> Density:
    """How f^(-p), p = 1 + 1/κ, weighs the metric tube {distance < r}, r → 0, along the manifold, at κ > κ_c.

    ∝ ∫_{S^{k-1}} (νᵀHν)^{-p} dν = const · det(H)^{-1/2} [1 - ε E log(uᵀH⁻¹u) + O(ε²)] with ε = k/2 - p: a weaker
    preference than `limit_density`, which it tends to as κ ↓ κ_c. `ValueError` unless κ > κ_c, as otherwise the mass is
    infinite.
    """
    p = 1 + 1 / positive("temperature", temperature)

    def weight(curvatures):
        require_supercritical(temperature, curvatures.shape[-1])
        return _sphere_means(curvatures, p)

    return _law(loss, chart, grid, weight)


def require_supercritical(temperature, codim: int) -> None:
    """`ValueError` unless κ > κ_c = 2/(k-2)."""
    limit = critical_temperature(codim)
    if not temperature > limit:
        raise ValueError(
            f"`temperature` must be above κ_c = 2/(k-2) = {limit:g} for minimisers of codimension {codim}, but got "
            f"{temperature}: below it f^(-p) is not integrable there and SGD converges to the minimisers."
        )


def cell_nodes(grid: Grid) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " q"]]:
    """Gauss nodes in every cell, cell by cell, and the weights of a cell, whose sum is 1."""
    x, w = np.polynomial.legendre.leggauss(_order)
    axes = [e[:-1, None] + np.diff(e)[:, None] * 0.5 * (1 + x) for e in grid.edges]
    n = grid.ndim
    mesh = []
    for k, nodes in enumerate(axes):
        shape = [1] * (2 * n)
        shape[k], shape[n + k] = nodes.shape
        mesh.append(np.broadcast_to(nodes.reshape(shape), (*grid.shape, *[_order] * n)))
    weights = np.ones(1)
    for _ in range(n):
        weights = np.outer(weights, 0.5 * w).ravel()
    return np.stack(mesh, axis=-1).reshape(-1, n), weights


def _law(loss: Callable, chart: Callable, grid: Grid, weight: Callable) -> Density:
    points, quadrature = cell_nodes(grid)
    geometry = _geometry(scalar_valued(loss), chart, grid.ndim)
    values = evaluate(geometry, points)
    volume, slope, value, curvatures = values[:, 0], values[:, 1], values[:, 2], values[:, 3:]
    _check(points, volume, curvatures, slope, value)
    mass = np.sum((volume * weight(curvatures)).reshape(grid.size, -1) * quadrature, axis=1)
    mass = mass.reshape(grid.shape) * grid.volumes
    return Density(grid, mass / mass.sum())


def _geometry(f: Callable, chart: Callable, n: int) -> Callable:
    """φ -> (volume element, |∇f|, f, curvatures across the manifold in ascending order)."""

    def at(phi: Float[Array, " n"]):
        x, J = chart(phi), jax.jacfwd(chart)(phi)
        if x.ndim != 1 or not len(x) > n:
            raise ValueError(
                f"`chart(phi)` must return one point (d,) with d > n = {n}, the dimension of the grid, got {x.shape}."
            )
        across = jnp.linalg.qr(J, mode="complete")[0][:, n:]
        volume = jnp.sqrt(jnp.maximum(jnp.linalg.det(J.T @ J), 0.0))
        curvatures = jnp.linalg.eigvalsh(across.T @ jax.hessian(f)(x) @ across)
        return jnp.concatenate([jnp.stack([volume, jnp.linalg.norm(jax.grad(f)(x)), f(x)]), curvatures])

    return at


def _check(points, volume, curvatures, slope, value) -> None:
    def first(bad) -> str:
        return f"at φ = {points[np.argmax(bad)]}"

    if (bad := ~(volume > 0)).any():
        raise ValueError(f"`chart` must be regular, but its Jacobian loses rank {first(bad)}.")
    if (bad := ~(curvatures[:, 0] > _flat * curvatures[:, -1])).any():
        raise ValueError(
            f"The loss must be curved across the manifold, but {first(bad)} the curvatures are "
            f"{curvatures[np.argmax(bad)]}: these are no minima, or the manifold has more dimensions than the chart."
        )
    scale = np.sqrt(curvatures[:, -1] * np.maximum(np.ptp(value), 0) + _flat * curvatures[:, -1] ** 2)
    if (bad := slope > scale).any() or np.ptp(value) > _flat * max(1.0, float(np.max(np.abs(value)))):
        raise ValueError(
            f"`chart` must follow minimisers of one value, but the loss varies by {np.ptp(value):.3g} and its gradient "
            f"is {np.max(slope):.3g} {first(slope == slope.max())}."
        )


def _sphere_means(curvatures: Float[np.ndarray, "n k"], power: float) -> Float[np.ndarray, " n"]:
    return np.array([sphere_mean(np.diag(row), power) for row in curvatures])


# Gauss nodes an axis in a cell; a curvature, loss or squared slope below this fraction of the largest is zero.
_order, _flat = 4, 1e-10
