"""A narrow valley with and without momentum: what it gains in stability and speed, and what noise leaves of it.

f = (h₁x² + h₂y²)/2 with h₂ ≫ h₁. Gradient descent needs η < 2/h₂ and shrinks the distance by max|1 - ηh_i| a step; the
heavy ball is stable up to 2(1+β)/h₂ and shrinks it by √β where both directions oscillate. With gradient noise the
stationary covariances are those of `sgdsde.theory`: momentum at the same η raises the noise by 1/(1-β).
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import sde

from .. import optimizers, theory
from ..losses import Quadratic
from ..noise import Covariance
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Curvatures, momentum β, the steps of each run without noise, and of the runs with noise."""

    curvatures: tuple[float, float] = (0.04, 4.0)
    momentum: float = 0.67
    steps: int = 200
    noise: float = 0.01
    noisy_steps: int = 4000
    runs: int = 4000

    @staticmethod
    def fast() -> "Config":
        """Fewer runs and steps with noise."""
        return Config(noisy_steps=1500, runs=1000)


class Result(eqx.Module):
    """Paths without noise by method, their rates of decay, and E f with noise beside the exact stationary values."""

    config: Config = eqx.field(static=True)
    paths: dict[str, Float[np.ndarray, "s 2"]]
    decay: dict[str, tuple[float, float]]
    excess: dict[str, tuple[float, float, float]]

    @property
    def claims(self) -> list[Claim]:
        """Rates of decay and stationary losses are the exact ones; beyond 2/h₂ only momentum converges."""
        found = []
        for name, (measured, exact) in self.decay.items():
            # The mean factor over the second half; a double root or a phase leaves a few parts in the number of steps.
            found.append(Claim(f"{name}: factor a step", measured, exact, 4 / self.config.steps))
        found.append(Claim("η = 2.5/h₂, plain: factor a step", self.decay[_beyond][0], 1.0, 0.0, ">"))
        found.append(Claim("η = 2.5/h₂, momentum: factor a step", self.decay[_saved][0], 1.0, 0.0, "<"))
        for name, (measured, sem, exact) in self.excess.items():
            found.append(Claim(f"{name}: stationary E f", measured, exact, 4 * sem))
        return found

    def plot(self, axes=None) -> np.ndarray:
        """Paths in the valley, and distances against steps."""
        from ..plots import experiments

        return experiments.narrow_valley(self, axes)

    def __str__(self) -> str:
        rows = [[name, "factor a step", measured, "-", exact] for name, (measured, exact) in self.decay.items()]
        rows += [[name, "E f", *values] for name, values in self.excess.items()]
        head = ["method", "what", "value", "standard error", "exact"]
        return "\n".join([table(head, rows), *map(str, self.claims)])


# Learning rate times h₂ of the runs with noise: near the limit of stability plain descent is noisy for another reason.
_noisy_rate = 0.5

_beyond, _saved = "plain, η = 2.5/h₂", "momentum, η = 2.5/h₂"


def run(config: Config | None = None, key=0) -> Result:
    """Runs of gradient descent and of the heavy ball, without and with noise."""
    config = Config() if config is None else config
    h, beta = np.array(config.curvatures), config.momentum
    best = 2 / h.sum()
    # (1 + √β)²/h₂, the largest rate at which both directions oscillate, for the β of the valley's condition number.
    fast = (1 + np.sqrt(beta)) ** 2 / h[1]
    methods = {
        "plain, η = 2/(h₁+h₂)": (optimizers.SGD(best), best, 0.0),
        "momentum, η = (1+√β)²/h₂": (optimizers.Momentum(fast, momentum=beta), fast, beta),
        _beyond: (optimizers.SGD(2.5 / h[1]), 2.5 / h[1], 0.0),
        _saved: (optimizers.Momentum(2.5 / h[1], momentum=beta), 2.5 / h[1], beta),
    }
    loss, paths, decay = Quadratic(h), {}, {}
    for name, (method, eta, mu) in methods.items():
        out = optimizers.run(
            method, loss, jnp.array([10.0, 1.0]), steps=config.steps, key=key, save_at=np.arange(config.steps + 1)
        )
        assert out.xs is not None
        paths[name] = out.xs[:, 0]
        decay[name] = _factor(out.xs[:, 0]), _spectral_radius(h, eta, mu)
    return Result(config, paths, decay, _noisy(loss, _noisy_rate / h[1], config, key))


def _spectral_radius(h: Float[np.ndarray, "2"], eta: float, beta: float) -> float:
    # Of the roots of z² - (1 + β - ηh) z + β.
    roots = [np.roots([1, -(1 + beta - eta * k), beta]) for k in h]
    return float(max(np.abs(r).max() for r in roots))


def _factor(path: Float[np.ndarray, "s 2"]) -> float:
    # From the largest distances in two windows: an oscillation passes through zero.
    n = len(path) - 1
    window = n // 8
    size = np.abs(path).max(axis=1)
    early, late = size[n // 2 - window : n // 2].max(), size[n - window : n].max()
    return float((late / early) ** (2 / n))


def _noisy(loss: Quadratic, eta: float, config: Config, key) -> dict[str, tuple[float, float, float]]:
    h, C = np.diag(config.curvatures), config.noise * np.eye(2)
    methods = {
        "plain": (optimizers.SGD(eta), theory.stationary_covariance(h, C, eta, finite_rate=True)),
        "momentum": (
            optimizers.Momentum(eta, momentum=config.momentum),
            theory.stationary_covariance(h, C, eta, momentum=config.momentum, finite_rate=True),
        ),
        "averaged": (
            optimizers.Momentum(eta, momentum=config.momentum, form="ema"),
            theory.momentum.averaged_covariance(h, C, eta, momentum=config.momentum),
        ),
    }
    found = {}
    for name, (method, P) in methods.items():
        out = optimizers.run(
            method, loss, jnp.zeros(2), steps=config.noisy_steps, runs=config.runs, key=key, noise=Covariance(C, 1),
            observe={"f": sde.Moments(lambda t, x: loss(x))}, burn_in=config.noisy_steps // 2, every=10,
        )  # fmt: skip
        found[name] = float(out["f"].mean), float(out["f"].sem), float(0.5 * np.trace(h @ P))
    return found
