"""How the noise of a process depends on the state, found by looking at it: what some methods must know beforehand.

The noise is differentiated at many states around the given ones and times. Dependence that begins only far from there,
behind a `jnp.where`, is not seen.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..process import AbstractDiffusion, noise_structure

# How far from the given states, in units of their size, the noise is probed for its dependence on x.
_scales = (0.1, 1.0, 10.0)
_probes = 64


def is_additive(process: AbstractDiffusion, x: Float[Array, "n d"]) -> bool:
    """Whether G does not depend on x; it may depend on t."""
    _, m = noise_structure(process, x[0])
    random = np.random.default_rng(1)
    # One derivative of one product shows any dependence: only for exceptional directions would it vanish.
    along = jnp.asarray(random.normal(size=(_probes, x.shape[1])), x.dtype)
    dw = jnp.asarray(random.normal(size=(_probes, m)), x.dtype)

    def slope(t, y, along, dw):
        return jax.jvp(lambda y: process.noise(t, y).mv(dw), (y,), (along,))[1]

    return _vanishes(jax.jit(jax.vmap(slope))(*_points(x), along, dw))


def is_separable(process: AbstractDiffusion, x: Float[Array, "n d"]) -> bool:
    """Whether the i-th entry of a diagonal G depends on x_i alone."""

    def slopes(t, y):
        return jax.jacfwd(lambda y: process.noise(t, y).mv(jnp.ones_like(y)))(y)

    return _vanishes(jax.jit(jax.vmap(slopes))(*_points(x)) * (1 - jnp.eye(x.shape[1], dtype=x.dtype)))


def commutes(process: AbstractDiffusion, x: Float[Array, "n d"]) -> bool:
    """Whether (g_j·∇) g_k = (g_k·∇) g_j for all columns of G, so that pathwise methods need no Lévy areas."""
    _, m = noise_structure(process, x[0])
    u, v = jnp.asarray(np.random.default_rng(2).normal(size=(2, _probes, m)), x.dtype)

    def bracket(t, y, u, v):
        def along(u, v):
            return jax.jvp(lambda y: process.noise(t, y).mv(v), (y,), (process.noise(t, y).mv(u),))[1]

        return along(u, v), along(v, u)

    one, other = jax.jit(jax.vmap(bracket))(*_points(x), u, v)
    # Where they differ they do so in the leading digits, at all but exceptional states.
    tolerance = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.max(jnp.abs(one) + jnp.abs(other), axis=1, keepdims=True)
    return bool(jnp.all(jnp.abs(one - other) <= tolerance))


def require_additive(method: str, process: AbstractDiffusion, x: Float[Array, "n d"]) -> None:
    """`ValueError` for noise that depends on x, saying what to use instead."""
    if not is_additive(process, x):
        raise ValueError(
            f"`{method}` needs noise that does not depend on x, but this noise does. Make loss-proportional noise "
            "additive with `TimeChanged`, or use `EulerMaruyama`."
        )


def _points(x: Float[Array, "n d"]) -> tuple[Float[Array, " probes"], Float[Array, "probes d"]]:
    """Times and states."""
    random = np.random.default_rng(0)
    centres = np.asarray(x, dtype=np.float64)[random.integers(len(x), size=_probes)]
    scale = (1 + np.abs(centres)) * random.choice(_scales, size=(_probes, 1))
    points = jnp.asarray(centres + scale * random.normal(size=centres.shape), x.dtype)
    times = jnp.asarray(10.0 ** random.uniform(-2, 2, size=_probes) * (random.random(_probes) > 0.2), x.dtype)
    return times, points


def _vanishes(slopes: Float[Array, "..."]) -> bool:
    # NaN from a probe outside the domain of the noise counts as dependence: the general formula is always right.
    return bool(jnp.all(slopes == 0))
