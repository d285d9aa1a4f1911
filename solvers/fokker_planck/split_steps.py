r"""Time steps axis by axis, for reversible processes in several dimensions: no system larger than a line of cells.

With A = Σ_k A_k, A_k the jumps along axis k, one step is Strang's (SIAM J. Numer. Anal. 5, 1968)

    S(τ) = R_1(τ/2) ... R_d(τ) ... R_1(τ/2),      R_k(τ) = r(τ A_k),      r(z) = 1 / Σ_(k<=4) (-z)^k / k! ≈ e^z.

r is Padé's approximation of order 4 that damps what is fast; as a sum over its two pairs of poles it takes two complex
tridiagonal solves a line. With detailed balance every A_k leaves the stationary law as it is, and so does S(τ): however
long the steps, the law that they lead to is the right one.

The results of 1, 2 and 3 steps are extrapolated in τ², to order 5; without the last extrapolation to order 4, and the
difference is the error. Steps are the interval over powers of two, so that their factors are used again.
"""

import numpy as np
from jaxtyping import Float

from .assembly import Generator
from .uniformization import Uniformization, root_law

# A third of the error allowed is for all of the interval alike. A third is for the way that the law goes, Σ |change of
# mass|: half of it for the first so much of that, and half as much for each time as much again. And a third is for the
# number of steps, K / (K + k)² of it for step k, so that they grow without bounds once the law has settled.
_first_way, _first_steps = 4.0, 100

# Steps grow when the error is this many times below what is allowed: one of twice the length has 32 times as much.
_comfortable = 40.0

# An interval is divided by 2 so many times at most, and so many times to begin with.
_most_halvings, _first_halvings = 40, 4

# Rounding may use up this part of the error allowed: it grows with the distance from equilibrium.
_for_rounding = 0.01

# Factors of this many steps are kept for each axis: those of two lengths.
_factors_kept = 12


def _poles() -> tuple[tuple[complex, complex], ...]:
    # The poles z of r above the real axis and weights c: r(x) = 2 Re Σ c / (z - x) for real x.
    denominator = np.polynomial.Polynomial([1, -1, 1 / 2, -1 / 6, 1 / 24])
    upper = [z for z in denominator.roots() if z.imag > 0]
    return tuple((complex(z), complex(-1 / denominator.deriv()(z))) for z in upper)


class SplitSteps:
    """exp(h A) for a generator that `fits`, to an error of rtol in sum. Gives up an interval after `most` steps."""

    def __init__(self, generator: Generator, rtol: float, most: float = np.inf):
        self.rtol, self.most = rtol, most
        self.jumps = Uniformization(generator)
        # Masses are held as v = m / sqrt(π), for which the jumps along each axis are a symmetric matrix.
        self.scale = root_law(self.jumps.log_law).reshape(generator.grid.shape)
        self.distance = _for_rounding * rtol / np.finfo(np.float64).eps
        self.lines = [_Lines(generator, k) for k in range(generator.grid.ndim)]
        self.halvings = _first_halvings

    @staticmethod
    def fits(generator: Generator) -> bool:
        """Whether this can advance laws of the generator: reversible, in several dimensions, no axis periodic, and no
        jumps but along the axes."""
        alone = generator.diagonals is None and "periodic" not in generator.boundary
        return generator.reversible and generator.grid.ndim > 1 and alone

    def advance(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The mass in the cells and outside after an interval h, and how much of h is left for others to do."""
        mass, outside, h = self.jumps.carry(mass, outside, h, self.distance)
        v = mass.reshape(self.scale.shape) / self.scale
        total = mass.sum() + outside
        done, count, way = float(h == 0), 0, 0.0
        while done < 1 and count < self.most:
            # In units of h, of which done is a whole number: steps end where those of twice the length would.
            part = 0.5**self.halvings
            after, error = self._step(v, part * h)
            change = float(np.abs((after - v) * self.scale).sum())
            along = change / _first_way * 0.5 ** (1 + (way + change) // _first_way)
            allowed = self.rtol / 3 * (part + along + _first_steps / (_first_steps + count) ** 2)
            if not error <= allowed:
                self._divide(h, error)
                continue
            v, done, count, way = after, done + part, count + 1, way + change
            if error < allowed / _comfortable and self.halvings > 0 and (done / (2 * part)) % 1 == 0:
                self.halvings -= 1
        mass = (v * self.scale).ravel()
        absorbing = any(line.absorbing for line in self.lines)
        return mass, total - mass.sum() if absorbing else outside, (1 - done) * h

    def _divide(self, h: float, error: float) -> None:
        if self.halvings == _most_halvings:
            raise RuntimeError(
                f"The law did not settle to rtol={self.rtol} in steps of {h * 0.5**self.halvings:.2g}: the last one "
                f"has an error of {error:.2g}. Ask for closer times, or for a larger `rtol`."
            )
        self.halvings += 1

    def _step(self, v, tau):
        one, two, three = (self._strang(v, tau / n, n) for n in (1, 2, 3))
        lower = two + (two - one) / 3
        fourth = three + (three - two) * (4 / 5)
        fifth = fourth + (fourth - lower) / 8
        return fifth, float(np.abs((fifth - fourth) * self.scale).sum())

    def _strang(self, v, tau, steps):
        first, *others = self.lines
        v = first.solve(v, tau / 2)
        for n in range(steps):
            for line in others[:-1]:
                v = line.solve(v, tau / 2)
            v = others[-1].solve(v, tau)
            for line in others[-2::-1]:
                v = line.solve(v, tau / 2)
            # The half step along the first axis that ends this step, and that which begins the next.
            v = first.solve(v, tau / 2 if n == steps - 1 else tau)
        return v


class _Lines:
    """The jumps along one axis, on each line of cells."""

    def __init__(self, generator: Generator, k: int):
        up, down = (np.moveaxis(rates[k], k, 0) for rates in (generator.up, generator.down))
        self.axis, self.absorbing = k, generator.boundary[k] == "absorbing"
        self.leaving = up[1:] + down[:-1]
        self.coupling = np.sqrt(up[1:-1]) * np.sqrt(down[1:-1])
        self.factors: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {}

    def solve(self, v: Float[np.ndarray, "..."], tau: float) -> Float[np.ndarray, "..."]:
        """r(τ A_k) v."""
        v = np.moveaxis(v, self.axis, 0)
        moved = np.zeros(v.shape)
        for (_, c), (lower, inverse) in zip(_poles_and_weights, self._factors(tau), strict=True):
            x = (2 * c) * v
            for i in range(1, len(x)):
                x[i] -= lower[i - 1] * x[i - 1]
            x *= inverse
            for i in range(len(x) - 2, -1, -1):
                x[i] -= lower[i] * x[i + 1]
            moved += x.real
        return np.moveaxis(moved, 0, self.axis)

    def _factors(self, tau):
        if tau not in self.factors:
            if len(self.factors) >= _factors_kept:
                self.factors.pop(next(iter(self.factors)))
            self.factors[tau] = [self._factor(z, tau) for z, _ in _poles_and_weights]
        return self.factors[tau]

    def _factor(self, z, tau):
        # L D Lᵀ of z - τ A_k, a real symmetric matrix plus i Im z: its imaginary part is definite, and elimination safe
        # without pivoting.
        pivots = z + tau * self.leaving
        lower = np.empty(self.coupling.shape, np.complex128)
        for i, coupling in enumerate(self.coupling):
            lower[i] = -tau * coupling / pivots[i]
            pivots[i + 1] += tau * coupling * lower[i]
        return lower, 1 / pivots


_poles_and_weights = _poles()
