"""Stochastic differential equations with known solutions, for the tests of integrators.

`pathwise` holds those whose solution is a function of the time and of the Brownian motion at that time; that each one
is a solution is checked with Itô's formula in `test_methods`. The others are known by the law of their end point.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from solvers import Diffusion


class Problem(NamedTuple):
    """A process with its start, and the solution at t as a function of the start and of the Brownian motion at t."""

    process: Diffusion
    x0: Array
    exact: Callable


def _geometric(motions):
    """dX_i = -X_i dt + s_i X_i dB_i, or with one motion for both components."""
    s = jnp.asarray([0.8, 0.5])
    noise = (lambda t, x: (s * x)[:, None]) if motions == 1 else (lambda t, x: s * x)
    return Problem(
        Diffusion(lambda t, x: -x, noise),
        jnp.asarray([1.0, 2.0]),
        lambda x0, t, w: x0 * jnp.exp((-1 - s**2 / 2) * t + s * w),
    )


def _tanh():
    """dX = -β² X (1 - X²) dt + β (1 - X²) dB, with X = tanh(βB + artanh x0)."""
    beta = 0.8
    return Problem(
        Diffusion(lambda t, x: -(beta**2) * x * (1 - x * x), lambda t, x: beta * (1 - x * x)),
        jnp.asarray([0.3]),
        lambda x0, t, w: jnp.tanh(beta * w + jnp.arctanh(x0)),
    )


def _arctan():
    """dX = -sin X cos³X dt + cos²X dB, with X = arctan(B + tan x0)."""
    return Problem(
        Diffusion(lambda t, x: -jnp.sin(x) * jnp.cos(x) ** 3, lambda t, x: jnp.cos(x) ** 2),
        jnp.asarray([0.5]),
        lambda x0, t, w: jnp.arctan(w + jnp.tan(x0)),
    )


def _fading():
    """dX = (β/√(1+t) - X/(2(1+t))) dt + αβ/√(1+t) dB: noise that depends on time alone."""
    alpha, beta = 0.8, 0.5
    return Problem(
        Diffusion(
            lambda t, x: beta / jnp.sqrt(1 + t) - x / (2 * (1 + t)),
            lambda t, x: alpha * beta / jnp.sqrt(1 + t),
        ),
        jnp.asarray([1.0]),
        lambda x0, t, w: (x0 + beta * (t + alpha * w)) / jnp.sqrt(1 + t),
    )


def _turning(motions):
    """dX = A X dt + Σ_j B_j X dB_j in the plane, B_j = a_j + b_j J and A = -1 + J/2 with the quarter turn J."""
    a, b = jnp.asarray([[0.6, 0.3], [-0.2, 0.5], [0.1, -0.3], [0.2, 0.1]]).T[:, :motions]

    def turn(x):
        return jnp.stack([-x[1], x[0]])

    def exact(x0, t, w):
        # exp of a complex number c, for the stretch and turn a + ib: c = (A - ½ Σ B_j²) t + Σ B_j W_j.
        real = (-1 - 0.5 * jnp.sum(a**2 - b**2)) * t + a @ w
        angle = (0.5 - jnp.sum(a * b)) * t + b @ w
        return jnp.exp(real) * (jnp.cos(angle) * x0 + jnp.sin(angle) * turn(x0))

    return Problem(
        Diffusion(
            lambda t, x: -x + 0.5 * turn(x),
            lambda t, x: x[:, None] * a + turn(x)[:, None] * b,
        ),
        jnp.asarray([1.0, 0.5]),
        exact,
    )


pathwise = {
    "geometric": _geometric(1),
    "geometric, diagonal": _geometric(2),
    "tanh": _tanh(),
    "arctan": _arctan(),
    "fading": _fading(),
    "two turning": _turning(2),
    "four turning": _turning(4),
}


def _levy_area():
    """dX_1 = dB_1, dX_2 = dB_2, dX_3 = X_1 dB_2 - X_2 dB_1: from 0, X_3 is twice the Lévy area of (B_1, B_2)."""
    return Diffusion(
        lambda t, x: jnp.zeros_like(x),
        lambda t, x: jnp.stack([jnp.stack([1.0, 0.0, -x[1]]), jnp.stack([0.0, 1.0, x[0]])], axis=1),
    )


# From 0, at time T: E X_3² = T² and E X_3⁴ = 5 T⁴. E (∫B_1 dB_2)⁴ = 7/4 T⁴ with ∫B_1 dB_2 = (X_1 X_2 + X_3)/2.
levy_area = _levy_area()


def _rotated():
    """dX = R((x_1 + x_2)/2) dB with R a rotation: a Brownian motion again, though its noise depends on x."""

    def noise(t, x):
        angle = 0.5 * (x[0] + x[1])
        return jnp.stack([jnp.stack([jnp.cos(angle), -jnp.sin(angle)]), jnp.stack([jnp.sin(angle), jnp.cos(angle)])])

    return Diffusion(lambda t, x: jnp.zeros_like(x), noise)


# The law at time T is N(x0, T I).
rotated = _rotated()


def _wells(fading):
    """A planar double well under additive noise that does not commute with the Hessian."""
    matrix = 1.5 * np.asarray([[0.6, 0.2], [-0.1, 0.5]])
    return Diffusion(
        lambda t, x: jnp.stack([x[0] - x[0] ** 3 + 0.3 * x[1], -2 * x[1] + jnp.sin(x[0])]),
        lambda t, x: (jnp.cos(t) if fading else 1.0) * matrix,
    )


# No solution in closed form: for methods of high order under additive noise, against themselves.
wells, fading_wells = _wells(False), _wells(True)

# dX = -X³ dt + X dB: a drift that grows faster than linearly.
cubic = Diffusion(lambda t, x: -(x**3), lambda t, x: x)
