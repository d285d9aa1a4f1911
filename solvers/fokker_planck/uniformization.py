r"""The law at later times jump by jump: exp(tA) m = Σ_k Poisson(k; qt) Pᵏ m with P = 1 + A/q, q the fastest rate.

All terms are positive, so that the error is that of cutting off the sum, however far the start is from equilibrium.
The price is about qt products with P. It carries a law over the short time in which its distance from equilibrium
would spoil an approximation that is accurate in the norm of L²(1/π).
"""

from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float
from scipy import special, stats

from .assembly import Generator
from .stationary import closed_law

# Mean number of jumps in one go. More than `mean + 9 sqrt(mean) + 30` have a probability below 1e-16.
_jumps_at_a_time = 200.0

# Products of a matrix entry and a mass at most: several seconds.
_most_work = 3e9

# The logarithm of the smallest sqrt(π) that is told from 0: what cells with less of the law hold underflows.
_least_log_root = -340.0


def root_law(log_law: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """sqrt(π), positive."""
    return np.exp(np.maximum(0.5 * log_law, _least_log_root))


class Uniformization:
    """Carries a law until its distance from equilibrium, ‖m‖ in L²(1/π), is below a bound."""

    def __init__(self, generator: Generator):
        self.a = generator.matrix
        self.rate = float(np.max(np.abs(self.a.diagonal())))
        self.leaving = generator.exit_rates.ravel() / self.rate
        with np.errstate(divide="ignore"):
            log_law = np.log(closed_law(generator)) if generator.log_weights is None else generator.log_weights
        self.log_law = log_law.ravel() - np.logaddexp.reduce(log_law.ravel())
        self.work = 0.0

    @cached_property
    def p(self) -> Any:
        """P. Most laws are near enough, and never need it."""
        return (scipy.sparse.identity(len(self.leaving), format="csr") + self.a.tocsr() / self.rate).tocsr()

    def distance(self, mass: Float[np.ndarray, " n"]) -> float:
        """sqrt(Σ m² / π): 1 at equilibrium, infinite where there is mass without a law."""
        there = mass > 0
        with np.errstate(over="ignore"):
            return float(np.exp(0.5 * special.logsumexp(2 * np.log(mass[there]) - self.log_law[there])))

    def carry(
        self, mass: Float[np.ndarray, " n"], outside: float, h: float, distance: float
    ) -> tuple[Float[np.ndarray, " n"], float, float]:
        """The masses in the cells and outside once they are near enough, or after h, and how much of h is left.

        Gives up where they are, when the work becomes too much.
        """
        while h > 0 and self.distance(mass) > distance and self.work < _most_work:
            step = min(h, _jumps_at_a_time / self.rate)
            mass, outside = self._jumped(mass, outside, step)
            h -= step
        return mass, outside, max(h, 0.0)

    def _jumped(self, mass, outside, step):
        mean = self.rate * step
        most = int(mean + 9 * np.sqrt(mean)) + 30
        weights, more = stats.poisson.pmf(np.arange(most + 1), mean), stats.poisson.sf(np.arange(most + 1), mean)
        moved = np.zeros_like(mass)
        # Few cells leave, and a long dot product would wait for threads.
        exits = np.flatnonzero(self.leaving)
        for k in range(most + 1):
            moved += weights[k] * mass
            # What leaves at jump k + 1 is gone if there are that many.
            outside += more[k] * float(self.leaving[exits] @ mass[exits])
            mass = self.p @ mass
        self.work += most * self.p.nnz
        return moved, outside
