"""The random time change that makes isotropic noise additive."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..process import AbstractDiffusion, as_operator, noise_structure
from .method import AbstractMethod
from .transform import AbstractTransform, AbstractTransformed

# Times at which it is checked that the coefficients do not depend on time.
_times = (0.0, 0.37, 11.3)


class TimeChanged(AbstractTransformed):
    """Runs `inner` on a clock τ on which noise of the form √(2 D(x)) I is additive: dτ = (D / unit) dt.

    The process becomes dX = (unit / D) b dτ + √(2 unit) dB. For SGD with loss-proportional noise, D = κ f and
    unit = κ, that is dτ = f dt and dX = -∇log f dτ + √(2κ) dB: additive noise and a bounded force in any dimension,
    whose law is f^(-1/κ) on the clock τ and f^(-1-1/κ) in time. With `LeimkuhlerMatthews` inside this is the method of
    choice for sampling that law: second order, and long steps do not blow up.

    `t1`, `dt`, `burn_in` and `save_at` of `simulate` are then on the clock τ. Observables weigh each sample by the time
    dt = unit / D dτ that it stands for: they give averages over time. `final` and `xs` are the states at equal τ, when
    each path is at a time of its own.

    `unit` is `process.temperature` by default, if the process has one, as SGD models have; else D at the first starting
    point. Raises `ValueError` for noise that is not a multiple of the identity (in one dimension any noise is) and for
    coefficients that depend on time.
    """

    inner: AbstractMethod
    unit: float | None = None

    def apply(self, process, x):
        _check(process, x)
        unit = self.unit
        if unit is None:
            unit = getattr(process, "temperature", None)
        if unit is None:
            unit = float(_diffusivity(process, x[0]))
        unit = np.asarray(unit, dtype=x.dtype)
        if unit.shape != () or not 0 < unit < np.inf:
            raise ValueError(
                f"`unit` of `TimeChanged` must be a positive number, got {unit}. It is the noise's D on the new clock; "
                "by default that is the one at the first starting point, which must not be 0."
            )
        changed = _OnClock(process, jnp.asarray(unit))
        return changed, _Clock(process, jnp.asarray(unit))


class _OnClock(AbstractDiffusion):
    """The process on the new clock."""

    process: AbstractDiffusion
    unit: Float[Array, ""]

    def drift(self, t, x):
        return self.process.drift(t, x) * (self.unit / _diffusivity(self.process, x))

    def noise(self, t, x):
        return as_operator(jnp.sqrt(2 * self.unit), x)


class _Clock(AbstractTransform):
    process: AbstractDiffusion
    unit: Float[Array, ""]
    weighted: ClassVar[bool] = True

    def enter(self, x):
        return x

    def leave(self, y):
        return y

    def weight(self, t, x):
        return self.unit / _diffusivity(self.process, x)


def _diffusivity(process: AbstractDiffusion, x: Float[Array, " d"]) -> Float[Array, ""]:
    """D of noise √(2D) I."""
    g = process.noise(jnp.zeros((), x.dtype), x).mv(jnp.ones_like(x))[0]
    return 0.5 * g * g


def _check(process: AbstractDiffusion, x: Float[Array, "n d"]) -> None:
    kind, motions = noise_structure(process, x[0])
    if kind != "isotropic" and not (x.shape[1] == 1 and motions == 1):
        raise ValueError(
            f"`TimeChanged` needs noise that is a number times the identity, but this noise is {kind}. Return a scalar "
            "if it is such a multiple, or use `EulerMaruyama`."
        )

    def coefficients(t):
        return jax.vmap(lambda x: jnp.append(process.drift(t, x), process.noise(t, x).mv(jnp.ones_like(x))[0]))(x)

    values = [np.asarray(coefficients(jnp.asarray(t, x.dtype))) for t in _times]
    if any(not np.array_equal(v, values[0], equal_nan=True) for v in values):
        raise ValueError(
            "`TimeChanged` needs coefficients that do not depend on time, but `drift(t, x)` or `noise(t, x)` changes "
            "with t. Use `EulerMaruyama`."
        )
