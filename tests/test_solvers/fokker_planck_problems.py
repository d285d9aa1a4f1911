"""Processes and losses on which the Fokker-Planck solver is tested."""

import jax
import jax.numpy as jnp

from solvers import Diffusion


def brownian(diffusion, drift=0.0):
    return Diffusion(lambda t, x: drift + 0 * x, lambda t, x: jnp.sqrt(2 * jnp.asarray(diffusion)))


def gibbs(f, temperature):
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * jnp.asarray(temperature)))


def loss_proportional(f, kappa):
    return Diffusion(lambda t, x: -jax.grad(f)(x), lambda t, x: jnp.sqrt(2 * kappa * f(x)))


def quadratic(x):
    return 0.5 * (1 + x @ x)


def double_well(offset=0.0):
    return lambda x: offset + (x[0] ** 2 - 1) ** 2 / 4
