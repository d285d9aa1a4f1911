"""An optimiser with normal gradient noise and a process on one Brownian motion.

Both end where they would alone, in law. But their difference varies far less than either, so that the difference of
two expectations shows in few runs.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from solvers.process import noise_structure
from solvers.sde import AbstractMethod
from solvers.sde.brownian import Need, increment, numbers_per_step
from solvers.sde.random import key_words, normal_pairs, unpaired

from ._checks import scalar_valued
from .models.model import AbstractModel
from .noise import AbstractGradientNoise
from .optimizers import SVAG, AbstractOptimizer
from .optimizers.gradients import GaussianGradient

# Runs computed at a time.
_block = 4096


class Pair(eqx.Module):
    """What is coupled: normal noise of covariance Σ = 2D/η for the optimiser, `gradient_noise`; a method for the model.

    `need` is what the method needs of the Brownian motion: found once for a model at all its learning rates, which is
    slow to do. `sign` = ±1 is what the motion is multiplied by before the optimiser sees it: models may write their
    noise with either, and the wrong one sets the two apart.
    """

    optimizer: AbstractOptimizer
    loss: Callable
    gradient_noise: AbstractGradientNoise
    model: AbstractModel
    method: AbstractMethod
    sign: Float[Array, ""]
    need: Need = eqx.field(static=True)

    def can_couple(self, x: Float[Array, " d"]) -> bool:
        """Whether model and optimiser are driven by equally many motions, at points such as x."""
        rate = self.optimizer.learning_rate
        operator = eqx.filter_eval_shape(self.gradient_noise.operator, scalar_valued(self.loss), rate, x)
        return operator.in_size() == self.motions(x) and self.need != "three-point"

    def motions(self, x: Float[Array, " d"]) -> int:
        """How many Brownian motions drive the model."""
        return noise_structure(self.model, self.model.initial(x))[1]


def best_sign(discrete: Float[np.ndarray, "n d"], continuous: Float[np.ndarray, "n d"]) -> float:
    """1 if the ends of pairs with the sign 1 go together, -1 if they are opposed."""
    finite = np.all(np.isfinite(discrete) & np.isfinite(continuous), axis=1)
    if not np.any(finite):
        return 1.0
    discrete, continuous = discrete[finite], continuous[finite]
    products = (discrete - discrete.mean(axis=0)) * (continuous - continuous.mean(axis=0))
    return -1.0 if np.sum(products) < 0 else 1.0


def coupled(
    pair: Pair, x0: Float[np.ndarray, " d"], steps: int, substeps: int, key: Any, runs: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Where optimiser and model are after so many `steps` of the optimiser, with `substeps` of the method in each."""
    x, size = jnp.asarray(x0), min(_block, runs)
    driver = _Driver(pair, pair.motions(x))
    words, k, j = key_words(key), jnp.asarray(steps, jnp.int32), jnp.asarray(substeps, jnp.int32)
    paths = [jnp.arange(first, first + size, dtype=jnp.uint32) for first in range(0, runs, size)]
    ends = [[np.asarray(end) for end in _ends(driver, words, path, x, k, j)] for path in paths]
    discrete, continuous = (np.concatenate(part)[:runs] for part in zip(*ends, strict=True))
    return discrete, continuous


class _Driver(eqx.Module):
    """One step of the optimiser, and the substeps of the model within it, for every run."""

    pair: Pair
    motions: int = eqx.field(static=True)

    @property
    def samples(self) -> int:
        return 2 if self.pair.optimizer.needs == "pair" else 1

    def fine(self, t, states, dt, z):
        """The states after a substep, and what the optimiser is told of it: as many motions as it has samples."""
        model, method = self.pair.model, self.pair.method
        count = z.shape[1] - (self.samples - 1) * self.motions
        increments = jax.vmap(lambda z: increment(self.pair.need, self.motions, dt, z))(z[:, :count])
        states = jax.vmap(lambda y, dw: method.step(model, t, y, dt, dw))(states, increments)
        return states, jnp.concatenate([increments.dw, jnp.sqrt(dt) * z[:, count:]], axis=1)

    def coarse(self, k, x, memory, z):
        """Points and memories after a step of the optimiser, from standard normal numbers."""
        optimizer = self.pair.optimizer

        def step(x, memory, z):
            z = self._told(self.pair.sign.astype(z.dtype) * z.reshape(self.samples, self.motions))
            gradient = GaussianGradient(self.pair.loss, self.pair.gradient_noise, optimizer.learning_rate, z)
            return optimizer.step(k.astype(jnp.uint32), x, memory, gradient)

        return jax.vmap(step)(x, memory, z)

    def _told(self, z):
        optimizer = self.pair.optimizer
        if not isinstance(optimizer, SVAG):
            return z
        # Turned such that r₊z₁ + r₋z₂ = √l w, where w drives the model; r₊² + r₋² = l.
        l = optimizer.amplification.astype(z.dtype)  # noqa: E741
        plus, minus = 0.5 * (1 + jnp.sqrt(2 * l - 1)), 0.5 * (1 - jnp.sqrt(2 * l - 1))
        return jnp.stack([plus * z[0] + minus * z[1], minus * z[0] - plus * z[1]]) / jnp.sqrt(l)


@eqx.filter_jit
def _ends(
    driver: _Driver,
    words: UInt32[Array, "2"],
    path: UInt32[Array, " n"],
    x0: Float[Array, " d"],
    steps: Int[Array, ""],
    substeps: Int[Array, ""],
) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
    model, optimizer = driver.pair.model, driver.pair.optimizer
    clock = optimizer.clock.astype(x0.dtype)
    dt = clock / substeps.astype(x0.dtype)
    told = driver.samples * driver.motions
    # No Lévy area is sampled to a tolerance in the step by the methods of weak order 2.
    numbers = numbers_per_step(driver.pair.need, driver.motions, np.inf) + told - driver.motions

    def step(k, carry):
        states, x, memory = carry

        def substep(j, carry):
            states, total = carry
            fine = k * substeps + j
            pairs = normal_pairs(words, path, fine.astype(jnp.uint32), -(-numbers // 2), x0.dtype)
            states, part = driver.fine(fine.astype(x0.dtype) * dt, states, dt, unpaired(pairs, numbers))
            return states, total + part

        none = jnp.zeros((path.size, told), x0.dtype)
        states, total = lax.fori_loop(0, substeps, substep, (states, none))
        return states, *driver.coarse(k, x, memory, total / jnp.sqrt(clock))

    x = jnp.broadcast_to(x0, (path.size, x0.size))
    start = jax.vmap(model.initial)(x), x, jax.vmap(optimizer.init)(x)
    states, x, _ = lax.fori_loop(0, steps, step, start)
    return x, model.position(states)
