"""Energy distance between two samples of vectors, with a permutation test and the power that the test has."""

from collections.abc import Callable

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

# Permutations held at once are at most so many numbers.
_at_once = 1 << 22

# Half-samples over which the power is averaged, and permutations of each test then: p is a whole number of 1/100.
_halves, _inner_permutations = 200, 99


class EnergyTest(eqx.Module):
    """The outcome of `energy_test`. `distance` is without bias, so that it may be negative; `sem` its standard error.

    `scale` is E|X - Y|: distance / (2 scale) is between 0 and 1, up to its error, and 0 only if the laws are the same.
    """

    distance: float
    sem: float
    scale: float
    p: float
    permutations: int

    def __str__(self) -> str:
        return f"energy distance {self.distance:.3g} ± {self.sem:.1g}, p = {self.p:.2g}"


def energy_test(x, y, *, permutations: int = 999, key: int = 0) -> EnergyTest:
    """2E|X - Y| - E|X - X'| - E|Y - Y'| of two samples of vectors, (n, k) and (m, k), or (n,) and (m,) of numbers.

    Components are divided by their standard deviation in the pooled sample. p is (1 + the number of permutations of the
    pooled sample with a distance as large) / (1 + permutations): the test that rejects for p ≤ α has the level α for
    every law and sample size, exactly so if α (1 + permutations) is a whole number and no distances are tied. The
    samples must be independent of each other and within: no coupled runs. The standard error is a jackknife over
    samples; it is meant for laws that differ, and tells nothing of the null.

    Cost: one matrix of (n+m)² distances, and a product with it for each permutation. `ValueError` for samples of
    different width, of fewer than 4 vectors, or with numbers that are not finite.
    """
    x, y = _sample("x", x), _sample("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"`x` and `y` must have equally many components, but they have {x.shape[1]} and {y.shape[1]}.")
    if isinstance(permutations, bool) or int(permutations) != permutations or permutations < 1:
        raise ValueError(f"`permutations` must be a positive whole number, but got {permutations}.")
    between = distances(x, y)
    return tested(between, len(x), int(permutations), np.random.default_rng(key))


def distances(x: Float[np.ndarray, "n k"], y: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "N N"]:
    """The distances in the pooled sample, its components scaled to unit standard deviation."""
    pooled = np.concatenate([x, y])
    # A component that is the same for all says nothing.
    spread = pooled.std(axis=0)
    scaled = (pooled - pooled.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return cdist(scaled, scaled)


def tested(between: Float[np.ndarray, "N N"], n: int, permutations: int, rng: np.random.Generator) -> EnergyTest:
    """The test of the first n of the pooled sample against the rest."""
    m = len(between) - n
    # Without bias: the zeros of the diagonal are not counted.
    to_x, to_y = between[:, :n].sum(axis=1), between[:, n:].sum(axis=1)
    cross, own_x, own_y = to_y[:n].sum(), to_x[:n].sum(), to_y[n:].sum()
    distance = 2 * cross / (n * m) - own_x / (n * (n - 1)) - own_y / (m * (m - 1))
    without_x = 2 * (cross - to_y[:n]) / ((n - 1) * m) - (own_x - 2 * to_x[:n]) / ((n - 1) * (n - 2))
    without_x -= own_y / (m * (m - 1))
    without_y = 2 * (cross - to_x[n:]) / (n * (m - 1)) - (own_y - 2 * to_y[n:]) / ((m - 1) * (m - 2))
    without_y -= own_x / (n * (n - 1))
    variance = sum(np.var(w) * (len(w) - 1) for w in (without_x, without_y))
    p = _p_value(between, n, permutations, rng)
    return EnergyTest(float(distance), float(np.sqrt(variance)), float(cross / (n * m)), p, permutations)


def power(
    between: Float[np.ndarray, "N N"],
    halves: Callable[[np.random.Generator], tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]],
    level: float,
    rng: np.random.Generator,
) -> float:
    """How often the test of one random half against another rejects at the level; `halves(rng)` draws their indices.

    The mean over draws of samples is the power of the test with that many samples, without bias, since those of a half
    are independent draws from their law. All halves are of one pair of samples, and are alike where the power is
    neither near 0 nor near 1: its error is then larger than that of a proportion.
    """
    rejected = 0
    for _ in range(_halves):
        first, second = halves(rng)
        chosen = np.concatenate([first, second])
        rejected += _p_value(between[np.ix_(chosen, chosen)], len(first), _inner_permutations, rng) <= level
    return rejected / _halves


def random_halves(n: int, m: int) -> Callable:
    """Half of the first n, and half of the m after them, at random."""
    return lambda rng: (rng.permutation(n)[: n // 2], n + rng.permutation(m)[: m // 2])


def disjoint_halves(n: int) -> Callable:
    """Half of the first n, and of the n after them those of the other half."""

    def draw(rng):
        order = rng.permutation(n)
        return order[: n // 2], n + order[n // 2 : 2 * (n // 2)]

    return draw


def _p_value(between: Float[np.ndarray, "N N"], n: int, permutations: int, rng: np.random.Generator) -> float:
    total = len(between)
    # The distance, zeros of the diagonal counted, is -wᵀ D w.
    weights = np.concatenate([np.full(n, 1 / n), np.full(total - n, -1 / (total - n))])
    observed = -weights @ between @ weights
    # Equal up to rounding counts as equal.
    threshold = observed - 1e-12 * np.max(between) if total else observed
    as_large, left = 0, permutations
    while left:
        count = min(left, max(1, _at_once // total))
        w = rng.permuted(np.broadcast_to(weights, (count, total)), axis=1)
        as_large += int(np.sum(-np.sum((w @ between) * w, axis=1) >= threshold))
        left -= count
    return (1 + as_large) / (1 + permutations)


def _sample(name: str, x) -> Float[np.ndarray, "n k"]:
    x = np.asarray(x, np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or len(x) < 4 or x.shape[1] == 0:
        raise ValueError(f"`{name}` must be at least 4 vectors, shape (n, k) or (n,), but got shape {x.shape}.")
    if not np.all(np.isfinite(x)):
        raise ValueError(f"`{name}` must be finite, but {np.sum(~np.isfinite(x).all(axis=1))} of its vectors are not.")
    return x
