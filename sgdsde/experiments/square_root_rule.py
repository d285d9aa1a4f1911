"""Larger batches: Adam and RMSProp keep their law under the square-root rule, SGD under the linear one.

On f = w²/2 with normal gradient noise of variance σ²/k, batches k times as large call for √k η, 1 - k(1-β) and ε/√k in
adaptive methods: their SDE, with the clock t = η²·steps, stays the same. SGD calls for kη. Each method is run under
both rules, which are compared at equal numbers of examples. The SDE is the limit η → 0 with ησ, εη and (1-β)/η² fixed.
What it drops grows with k: the rule ends where k(1-β), or a mean gradient over its noise, is no longer small.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp

from solvers import sde

from .. import models, optimizers
from ..losses import Quadratic
from ..noise import Covariance
from ..theory import adaptive
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Steps of the smallest batch in a unit of time; its multiples k, the first of them 1; and runs of each.

    Moments are kept `moments` times in a unit; `steps` must be a multiple of that times each k.
    """

    steps: int = 3200
    batches: tuple[int, ...] = (1, 4, 16)
    runs: int = 10_000
    moments: int = 4

    @staticmethod
    def fast() -> "Config":
        """Fewer steps, runs and moments."""
        return Config(steps=960, runs=2000, moments=1)


class Result(eqx.Module):
    """Mean and variance of w for each method (RMSProp, Adam, SGD), rule (square-root, linear), batch and time.

    `times` are η²·steps of the smallest batch, and of the others at equal numbers of examples. `limit` is the mean and
    the variance of the SDE in closed form, and `process` that of paths of Adam's; `moved` is by how much these change
    when the hyperparameters follow the rule to the largest batch. `distances` are those of Kolmogorov and Smirnov
    between the iterates of each batch and of the smallest, at the end.
    """

    config: Config = eqx.field(static=True)
    times: Float[np.ndarray, " s"]
    moments: Float[np.ndarray, "3 2 k 2 s"]
    distances: Float[np.ndarray, "3 2 k"]
    limit: Float[np.ndarray, "3 2 s"]
    process: Float[np.ndarray, "2 s"]
    moved: float

    @property
    def losses(self) -> Float[np.ndarray, "3 2 k s"]:
        """E f."""
        return 0.5 * (self.moments[..., 0, :] ** 2 + self.moments[..., 1, :])

    @property
    def limit_losses(self) -> Float[np.ndarray, "3 s"]:
        """E f of the SDE."""
        return 0.5 * (self.limit[:, 0] ** 2 + self.limit[:, 1])

    @property
    def claims(self) -> list[Claim]:
        """Under its own rule a method has one law for every batch, that of its SDE; under the other it has not."""
        found = [Claim("Adam's SDE, square-root rule: paths move by", self.moved, 0.0, _rounding)]
        found += self._as_limit(methods.index("Adam"), self.process, _coarse, "Adam's SDE")
        for m, name in enumerate(methods):
            own, other = (1, 0) if name == "SGD" else (0, 1)
            for b, k in enumerate(self.config.batches):
                text = f"{name}, {rules[own]} rule, k = {k}"
                found += self._as_limit(m, self.moments[m, own, b], k, text)
                if b > 0:
                    distance = float(self.distances[m, own, b])
                    found.append(Claim(f"{text}: distance from k = 1", distance, 0.0, self._allowed(m, k)))
                    found += self._otherwise(m, other, b, f"{name}, {rules[other]} rule, k = {k}")
        return found

    def _as_limit(self, m: int, moments: Float[np.ndarray, "2 s"], k: int, text: str) -> list[Claim]:
        found = []
        # At t = 1 the gradients are still those of the start, as large as they come.
        for when, s, square in (
            ("at t = 1", np.searchsorted(self.times, 1 - 1e-9), _start**2),
            ("at the end", -1, _rest),
        ):
            (mean, variance), limit = moments[:, s].tolist(), self.limit[m, :, s].tolist()
            order = _dropped(self.config, methods[m], k, k, square)
            sem = math.sqrt(variance / self.config.runs)
            # The scale of the mean is that of w.
            scale = math.sqrt(limit[0] ** 2 + limit[1])
            found.append(Claim(f"{text}: mean {when}", mean, limit[0], 4 * sem + order * scale))
            sem = variance * math.sqrt(2 / self.config.runs)
            found.append(Claim(f"{text}: variance {when}", variance, limit[1], 4 * sem + order * limit[1]))
        return found

    def _otherwise(self, m: int, r: int, b: int, text: str) -> list[Claim]:
        k = self.config.batches[b]
        value, expected = float(self.moments[m, r, b, 1, -1]), _other_variance(methods[m], k, _end)
        longer = math.sqrt(k) if methods[m] == "SGD" else k * math.sqrt(k)
        order = _dropped(self.config, methods[m], k, longer, expected)
        tolerance = 4 * value * math.sqrt(2 / self.config.runs) + order * expected
        found = [Claim(f"{text}: variance at the end", value, expected, tolerance)]
        if k == self.config.batches[-1]:
            distance = float(self.distances[m, r, b])
            found.append(Claim(f"{text}: distance from k = 1", distance, self._allowed(m, k), 0.0, ">"))
        return found

    def _allowed(self, m: int, k: int) -> float:
        # 1.95 √(2/n) is exceeded once in a thousand; a normal law whose spread is off by δ is off by less than δ/4.
        return 1.95 * math.sqrt(2 / self.config.runs) + _dropped(self.config, methods[m], k, k, _rest) / 4

    def plot(self, axes=None) -> np.ndarray:
        """E f against time, for each method, batch and rule."""
        from ..plots import experiments

        return experiments.square_root_rule(self, axes)

    def __str__(self) -> str:
        rows = []
        for m, name in enumerate(methods):
            for r, rule in enumerate(rules):
                for b, k in enumerate(self.config.batches):
                    mean, variance = self.moments[m, r, b, :, -1]
                    rows.append([name, rule, str(k), mean, variance, self.limit[m, 1, -1], self.distances[m, r, b]])
        head = ["method", "rule", "k", "mean at the end", "variance", "of the SDE", "distance from k = 1"]
        return "\n".join([table(head, rows), *map(str, self.claims)])


methods, rules = ("RMSProp", "Adam", "SGD"), ("square-root", "linear")

# In the time of the SDE, where ησ = h = 1: εη, (1-β₁)/η² and (1-β₂)/η² of the smallest batch. P = 1 + εη is by how much
# slower w moves than with ε = 0, and 1/(2P) its variance at rest.
_epsilon, _c1, _c2 = 0.25, 4.0, 1.5
_slower = 1 + _epsilon
_rest = float(adaptive.stationary_variance(1.0, 1.0, 1.0, _epsilon))

# Start of w, and of v over the variance of a gradient, for RMSProp: early steps are half as long.
_start, _u0 = 1.5, 4.0

_end = 5

# Steps of the smallest batch in one step of the SDE: its error is of the order of that of a batch as much larger.
_coarse = 4

# Differences between paths in single precision, which contract, and the rounding of 1 - k(1-β).
_rounding = 1e-3


def _dropped(config: Config, method: str, k: float, longer: float, square: float) -> float:
    # The relative terms that a limit drops, to first order: the step ηh/σ, (∇f)²/σ² of gradients with E w² = `square`,
    # and in averages the weight 1 - β of the newest gradient.
    averaged = {"RMSProp": square + _c2, "Adam": square + _c1 + _c2, "SGD": 0.0}
    return (longer + k * averaged[method]) / config.steps


def _other_variance(method: str, k: int, t: float) -> float:
    # Adaptive: √k longer steps raise the variance by √k, at a higher rate. SGD: the reverse, and at rest only later.
    if method != "SGD":
        return _rest * math.sqrt(k)
    return -_rest / math.sqrt(k) * math.expm1(-2 * t / _slower / math.sqrt(k))


def run(config: Config | None = None, key=0) -> Result:
    """Runs of each method under both rules, and of the processes."""
    config = _checked(Config() if config is None else config)
    times = np.arange(_end * config.moments + 1) / config.moments
    found = [_batches(method, times, config, key) for method in methods]
    moments, distances = (np.array(values) for values in zip(*found, strict=True))
    # One key: the same path of the SDE for every batch.
    small, large = (_paths(k, times, config, _key(key, len(config.batches))) for k in (1, config.batches[-1]))
    moved = float(np.abs(large - small).max())
    return Result(config, times, moments, distances, _limits(times), _moments(small), moved)


def _batches(method: str, times, config: Config, key):
    """Moments of w, (2, k, 2, s), and distances at the end from the smallest batch, (2, k), under both rules."""
    smallest = _runs(method, rules[0], 1, times, config, _key(key, 0))
    # Batches share no random numbers: their differences are those of independent runs.
    larger = [(k, _key(key, b)) for b, k in enumerate(config.batches) if b > 0]
    runs = [[smallest, *(_runs(method, rule, k, times, config, own) for k, own in larger)] for rule in rules]
    distances = [[ks_2samp(w[-1], smallest[-1], method="asymp")[0] for w in of_rule] for of_rule in runs]
    return np.array([[_moments(w) for w in of_rule] for of_rule in runs]), np.array(distances)


def _moments(w: Float[np.ndarray, "s n"]) -> Float[np.ndarray, "2 s"]:
    return np.stack([w.mean(axis=1), w.var(axis=1, ddof=1)])


def _key(key, index: int):
    return jax.random.fold_in(jax.random.key(key) if isinstance(key, int) else key, index)


def _checked(config: Config) -> Config:
    if config.batches[0] != 1 or any(config.steps % (config.moments * k) for k in config.batches):
        raise ValueError(
            f"`steps` must be a multiple of `moments` times each k of `batches`, the first of them 1: got {config}."
        )
    return config


def _problem(config: Config, k: int):
    # η² is the time of a step, and Var g = 1/η² for the smallest batch.
    return Quadratic(1.0), Covariance(np.eye(1) * config.steps, k), config.steps**-0.5


def _runs(method: str, rule: str, k: int, times, config: Config, key) -> Float[np.ndarray, "s n"]:
    loss, noise, eta = _problem(config, k)
    saves = np.round(times * config.steps / k).astype(int)
    optimizer = _optimizer(method, eta, k, k if rule == "linear" else np.sqrt(k), config)
    start = np.full(1, _start)
    out = optimizers.run(
        optimizer, loss, start, steps=int(saves[-1]), runs=config.runs, key=key, noise=noise, save_at=saves
    )
    assert out.xs is not None
    return np.asarray(out.xs[..., 0], np.float64)


def _optimizer(method: str, eta: float, k: int, longer: float, config: Config) -> optimizers.AbstractOptimizer:
    beta1, beta2 = 1 - k * _c1 * eta**2, 1 - k * _c2 * eta**2
    epsilon = _epsilon / eta / np.sqrt(k)
    if method == "SGD":
        # Preconditioned as the adaptive methods are at rest.
        return optimizers.SGD(longer * eta**2 / _slower)
    if method == "RMSProp":
        return optimizers.RMSProp(longer * eta, decay=beta2, epsilon=epsilon, initial=_u0 * config.steps / k)
    return optimizers.Adam(longer * eta, beta1=beta1, beta2=beta2, epsilon=epsilon)


def _limits(times) -> Float[np.ndarray, "3 2 s"]:
    one = {"curvature": 1.0, "noise": 1.0, "scale": 1.0, "epsilon": _epsilon}
    rmsprop, rest, adam = one | {"decay": _c2, "u0": _u0}, one | {"decay": _c2, "u0": 1.0}, one | {"decay": _c1}
    # SGD is RMSProp whose v is at rest.
    laws = {
        "RMSProp": (partial(adaptive.rmsprop_mean, **rmsprop), partial(adaptive.rmsprop_variance, **rmsprop)),
        "Adam": (partial(adaptive.adam_mean, **adam), partial(adaptive.adam_variance, **adam)),
        "SGD": (partial(adaptive.rmsprop_mean, **rest), partial(adaptive.rmsprop_variance, **rest)),
    }
    return np.array(
        [[[mean(_start, t) for t in times], [variance(t) for t in times]] for mean, variance in laws.values()]
    )


def _paths(k: int, times, config: Config, key) -> Float[np.ndarray, "s n"]:
    """Of Adam's SDE, whose hyperparameters follow the rule from the smallest batch to k."""
    loss, noise, eta = _problem(config, 1)
    base = models.Adam(loss, noise, eta, 1 - _c1 * eta**2, 1 - _c2 * eta**2, _epsilon / eta)
    rule: dict[str, Any] = base.square_root_rule(k)
    model = models.Adam(loss, _problem(config, k)[1], **rule)
    x0, dt = model.initial(jnp.full(1, _start)), _coarse / config.steps
    out = sde.simulate(model, sde.EulerMaruyama(), x0, _end, dt, key, config.runs, save_at=times)
    assert out.xs is not None
    return np.asarray(out.xs[..., 0], np.float64)
