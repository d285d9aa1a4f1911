r"""Time steps as polynomials of the generator, with a bound on the error that is known before the first product.

With u = m / π, π the stationary law of a reversible process, du/dt = L u, (L u)_i = Σ_j k_ij (u_j - u_i) - κ_i u_i, and
the spectrum of L is real, in [-λ, 0]. On it, with z = h λ / 2 (Abramowitz and Stegun, 9.6.34),

    exp(hL) = e^(-z) Σ'_k 2 I_k(z) T_k(1 + 2 L / λ),     |error of K terms| <= Σ_(k>K) 2 e^(-z) I_k(z),

in the norm of L²(1/π), where the primed sum halves its first term. That takes K ≈ sqrt(2 z log(1/error)) products with
L, the root of what single jumps or explicit steps take, and digits are cheap. All coefficients are positive; divided by
their sum they keep mass, and u = 1, a law at rest, exactly.

A product is a few operations on neighbouring cells. It is compiled by JAX once for each shape of the grid, since rates,
intervals and numbers of terms are arguments, and runs on the device where JAX puts arrays.
"""

from collections.abc import Sequence
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.special import ive

from .assembly import Generator
from .jumps import Jumps, generator_jumps
from .stationary import closed_law
from .uniformization import Uniformization

# An interval is divided so that a polynomial has fewer terms than this.
_most_terms = 1 << 13

# Of the error allowed, one part is for the polynomials, and one for rounding: it grows with the distance from
# equilibrium.
_for_terms, _for_rounding = 0.9, 0.01


class ChebyshevSteps:
    """exp(h A) for a generator that `fits`, to an error of rtol in sum."""

    def __init__(self, generator: Generator, rtol: float):
        self.generator, self.rtol, self.shape = generator, rtol, generator.grid.shape
        # A law at rest must come out as exactly one.
        self.law = np.maximum(closed_law(generator), np.finfo(np.float64).tiny).ravel()
        self.distance = _for_rounding * rtol / np.finfo(np.float64).eps
        jumps = generator_jumps(generator, np.zeros(self.shape), np.zeros(self.shape))
        self.absorbing = not generator.conserving
        self.fastest = fastest_rate(jumps)
        # 4 L / λ, twice what is added to the identity in the argument of T_k.
        scale = 4 / self.fastest
        self.rates = [jnp.asarray(scale * r) for pair in zip(jumps.up, jumps.down, strict=True) for r in pair]
        self.killed = jnp.asarray(scale * jumps.killed) if self.absorbing else None

    @staticmethod
    def fits(generator: Generator) -> bool:
        """Whether this can advance laws of the generator: reversible, no axis periodic, and no jumps but along axes."""
        alone = generator.diagonals is None and "periodic" not in generator.boundary
        return generator.reversible and alone

    def products(self, h: float) -> float:
        """About how many products with the generator an interval h takes."""
        digits = np.log(1 / self.rtol) + np.log(self.distance) / 2
        return float(np.sqrt(h * self.fastest * digits) + digits)

    def advance(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The mass in the cells and outside after an interval h, and how much of h is left for others to do.

        That is nothing, unless the law is so far from equilibrium that rounding would be too large.
        """
        total = mass.sum() + outside
        u, distance = self._ratio(mass)
        if distance > self.distance:
            mass, outside, h = self.carrier.carry(mass, outside, h, self.distance)
            u, distance = self._ratio(mass)
        if h > 0 and distance <= self.distance:
            mass = self._polynomials(u, h, _for_terms * self.rtol / max(distance, 1.0))
            outside, h = total - mass.sum() if self.absorbing else outside, 0.0
        return mass, outside, h

    @cached_property
    def carrier(self) -> Uniformization:
        """What brings a law nearer to equilibrium first, if it is so far that rounding would be too large."""
        return Uniformization(self.generator)

    def _ratio(self, mass):
        # u, and its norm, the distance from equilibrium.
        with np.errstate(over="ignore"):
            u = mass / self.law
            return u, float(np.sqrt(mass @ u))

    def _polynomials(self, u, h, allowed):
        parts = 1
        while (c := coefficients(h / parts * self.fastest / 2, allowed / parts)) is None:
            parts *= 2
        padded = jnp.asarray(np.pad(c[::-1], (0, _most_terms - len(c))))
        u = jnp.asarray(u.reshape(self.shape))
        for _ in range(parts):
            u = chebyshev_sum(self.rates, self.killed, padded, jnp.asarray(len(c)), u)
        return np.asarray(u).ravel() * self.law


def fastest_rate(jumps: Jumps) -> float:
    """A bound λ on the eigenvalues of -L under detailed balance, where sqrt(k_ij k_ji) couples cells: Gershgorin's."""
    reach = sum([*jumps.up, *jumps.down], jumps.killed)
    for k, (up, down) in enumerate(zip(jumps.up, jumps.down, strict=True)):
        u, d, r = (np.moveaxis(a, k, 0) for a in (up, down, reach))
        coupling = np.sqrt(u[:-1]) * np.sqrt(d[1:])
        r[:-1] += coupling
        r[1:] += coupling
    return float(reach.max())


def coefficients(z: float, error: float) -> Float[np.ndarray, " terms"] | None:
    """2 e^(-z) I_k(z), the first one halved, up to a sum of the rest of `error`, scaled to the sum 1; an odd number.

    None if there would be `_most_terms` of them or more.
    """
    digits = max(np.log(1 / error), 1.0) + 4
    if np.sqrt(2 * z * digits) > _most_terms:
        return None
    c = 2 * ive(np.arange(int(np.sqrt(2 * z * digits) + digits) + 8), z)
    c[0] /= 2
    rest = np.cumsum(c[::-1])[::-1]
    # A factor of two because the scaling moves what was cut off.
    c = c[: int(np.sum(2 * rest > error)) // 2 * 2 + 1]
    return None if len(c) >= _most_terms else c / c.sum()


@jax.jit
def chebyshev_sum(
    rates: Sequence[Float[Array, "*shape"]],
    killed: Float[Array, "*shape"] | None,
    coefficients: Float[Array, " most"],
    terms: Int[Array, ""],
    u: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Σ_k c_k T_k(X) u with 2 X - 2 given by the `rates`, by Clenshaw's recurrence; c comes from its last to its first.

    One array is computed at a time: a compiler that made several at once would repeat the work for each. And a turn of
    the loop takes two terms, so that each result has a place to stay; the number of terms must be odd.
    """

    def after_next(c, b, after):
        return c * u + _jumped(rates, killed, b) + (b + (b - after))

    def turn(n, state):
        b, after = state
        middle = after_next(coefficients[2 * n], b, after)
        return after_next(coefficients[2 * n + 1], middle, b), middle

    zero = jnp.zeros_like(u)
    b, after = lax.fori_loop(0, terms // 2, turn, (zero, zero))
    return coefficients[terms - 1] * u + 0.5 * _jumped(rates, killed, b) + (b - after)


def _jumped(rates, killed, u):
    change = 0.0 if killed is None else -killed * u
    for k in range(u.ndim):
        up, down = rates[2 * k], rates[2 * k + 1]
        change = change + up * (_shifted(u, k, 1) - u) + down * (_shifted(u, k, -1) - u)
    return change


def _shifted(u, k, by):
    # The values of the neighbours above or below. Those beyond the ends, zero here, come with a rate of zero.
    low, high = (-1, 1) if by > 0 else (1, -1)
    return lax.pad(u, jnp.zeros((), u.dtype), [(low, high, 0) if j == k else (0, 0, 0) for j in range(u.ndim)])
