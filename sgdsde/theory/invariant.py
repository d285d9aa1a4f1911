"""The two invariant laws of isotropic noise that have a formula: Gibbs and the power law."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import Density, Grid

from .minima import lowest_minimum
from .normalise import PeakError, PointError, TailError, normalise


def gibbs(loss: Callable, temperature, grid: Grid) -> Density:
    """The law ∝ exp(-f/T) of constant isotropic noise D = T I, on the cells of `grid`, T = ησ (`model.temperature`).

    Cell masses are integrals, with relative error near 1e-9, and `outside` is the mass of the rest of R^d, not only
    of a larger box. But a well outside the grid that is narrower than about a thousandth of its distance may be missed,
    as no rule for integration can see everything: let the grid reach all wells that are known. Needs 64-bit JAX.

    `ValueError` if exp(-f/T) cannot be normalised because f does not grow, if f is not finite in the grid, or if T is
    not positive.
    """
    T = _positive("temperature", temperature)
    _require_x64()
    try:
        return normalise(loss, lambda f: -f / T, grid, lowest_minimum(loss, grid)[0])
    except PointError as error:
        raise ValueError(f"The loss must be finite on the grid, but f = {error.value} at x = {error.x}.") from None
    except PeakError as error:
        raise ValueError(
            f"exp(-f/T) with T={T:g} {error}. If the loss falls without bound, no such law exists; otherwise it is too "
            "peaked or rough there: use smaller cells."
        ) from None
    except TailError as error:
        raise ValueError(
            f"exp(-f/T) with T={T:g} cannot be normalised: {error}. The loss must grow in every direction, at least "
            "like a multiple of log|x| larger than dT; otherwise SGD has no invariant law. Weight decay gives one."
        ) from None


def power_law(loss: Callable, temperature, grid: Grid) -> Density:
    """The law ∝ f^(-p), p = 1 + 1/κ, of loss-proportional noise D = κ f I, with κ = ησ (`model.temperature`).

    Cell masses are integrals, with relative error near 1e-9, and `outside` is the mass of the rest of R^d, not only
    of a larger box. But a well outside the grid that is narrower than about a thousandth of its distance may be missed,
    as no rule for integration can see everything: let the grid reach all wells that are known. Needs 64-bit JAX.

    The law exists only if f^(-p) can be integrated

    - far out: where f grows like |x|^γ this needs pγ > d;
    - near zeros of f: at a set of minima of codimension k, with f quadratic across it, this needs p < k/2, which no
      κ satisfies when k ≤ 2. Otherwise SGD converges to the minimisers, and every law that lives
      on them is invariant. A loss with f > 0 everywhere has no such condition.

    `ValueError` names the condition that fails; also if f is negative or not finite, or κ is not positive.
    """
    kappa = _positive("temperature", temperature)
    p = 1 + 1 / kappa
    _require_x64()
    x, value, order = lowest_minimum(loss, grid)
    if value < 0:
        raise ValueError(_negative(value, x))
    if value == 0:
        _check_zero(x, order, p, kappa)
    try:
        return normalise(loss, lambda f: -p * jnp.log(f), grid, x)
    except PointError as error:
        if error.value < 0:
            raise ValueError(_negative(error.value, error.x)) from None
        raise ValueError(f"The loss must be finite on the grid, but f = {error.value} at x = {error.x}.") from None
    except PeakError as error:
        raise ValueError(
            f"f^(-p) with κ={kappa:g}, p={p:g} {error}. If f is 0 there the integral is infinite, or out of reach: add "
            "a constant to the loss. Otherwise it is too peaked or rough there: use smaller cells."
        ) from None
    except TailError as error:
        raise ValueError(_tail_message(error, p, kappa, grid.ndim)) from None


def _check_zero(x: Float[np.ndarray, " d"], order: tuple[float, int], p: float, kappa: float) -> None:
    gamma, codim = order
    # At least this integrable: f ≤ c·(quadratic across the zero set + quartic along it).
    bound = codim / gamma + (len(x) - codim) / 4
    if p < bound:
        return
    raise ValueError(
        f"f^(-p) with κ={kappa:g}, p={p:g} cannot be normalised: the loss is 0 at x = {x}, where it is of order "
        f"{gamma:.3g} in {codim} of {len(x)} directions, and integrability there needs p < {codim}/{gamma:.3g} (for "
        "quadratic minima p < k/2, k the codimension of the set of minima). There is no invariant density: SGD "
        "converges to the minimisers, where this noise vanishes. Add a constant to the loss if f = 0 is not meant."
    )


def _negative(value: float, x: Float[np.ndarray, " d"]) -> str:
    return (
        f"The loss must not be negative, because D = ησf must not, but f = {value:.6g} at x = {x}. Add a constant "
        f"above {-value:.6g} to the loss."
    )


def _tail_message(error: TailError, p: float, kappa: float, d: int) -> str:
    start = f"f^(-p) with κ={kappa:g}, p={p:g} cannot be normalised in d={d} dimensions: {error}. "
    if error.decay is None:
        return start
    gamma = (d + error.decay) / p
    start += f"It needs pγ > d where f grows like |x|^γ; here γ ≈ {gamma:.3g}. "
    if gamma < 1e-3:
        return start + "A loss that does not grow gives no invariant law at any κ: weight decay gives one."
    return start + f"Reduce κ = ησ below γ/(d - γ) ≈ {gamma / (d - gamma):.3g}, or let the loss grow faster."


def _positive(name: str, value) -> float:
    value = float(value)
    if not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be positive and finite, but got {name}={value:g}.")
    return value


def _require_x64() -> None:
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "Invariant laws are computed in 64-bit precision, which is off. Add this line before any other use of "
            'JAX: jax.config.update("jax_enable_x64", True)'
        )
