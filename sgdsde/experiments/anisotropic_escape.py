"""Escape from a sharp minimum: noise shaped as the curvature is leaves it, isotropic noise of equal trace hardly.

Two quadratic basins in the plane, f = min(10 a² + 100 b², |w + c|²), with c = (1, 1) and (a, b) the coordinates of
w - c in axes turned by 45°. The gradients of the examples of the sharp basin, moved by x_i, are ∇f - 2Hx_i: their
covariance has the shape of the Hessian, 4H Cov(x) H. Here every example keeps its -2Hx_i in the other basin, too. SGD
with minibatches, normal noise of the same covariance in the same steps, its process in the limit of small steps, and
controls of the same trace are watched until they leave the sharp basin; the Fokker-Planck equation gives the rates of
the processes.

Source of the two basins: Zhu, Wu, Yu, Wu and Ma, "The anisotropic noise in stochastic gradient descent: its behavior of
escaping from sharp minima and regularization effects", ICML 2019.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from solvers import Diffusion, Grid, fokker_planck, sde

from .. import optimizers
from ..losses import FiniteSum
from ..models import SGD
from ..noise import AbstractGradientNoise, EqualTrace, Minibatch
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """η, the standard deviation √(ηΣ/2h) of b in the sharp basin, examples; runs, time, and steps of η of the process.

    `cells` are those of each axis for the Fokker-Planck equation.
    """

    learning_rate: float = 0.00125
    width: float = 0.1
    examples: int = 100
    runs: int = 4000
    time: float = 4.0
    substeps: int = 8
    cells: int = 240

    @staticmethod
    def fast() -> "Config":
        """Fewer runs, watched for less time."""
        return Config(runs=400, time=1.0, substeps=4, examples=50, cells=120)


class Result(eqx.Module):
    """Exits per time from the sharp basin with standard errors, by route; and by the Fokker-Planck equation.

    `inside` holds the part of the runs that are still inside at `times`, by route.
    """

    config: Config = eqx.field(static=True)
    rates: dict[str, tuple[float, float]]
    solved: dict[str, tuple[float, float]]
    times: Float[np.ndarray, " s"]
    inside: dict[str, Float[np.ndarray, " s"]]

    @property
    def claims(self) -> list[Claim]:
        """Processes leave at the rates of the Fokker-Planck equation; the shape of the noise decides, not its trace."""
        found = []
        for noise, (rate, error) in self.solved.items():
            measured, sem = self.rates[f"process, {noise}"]
            # Exits per time at risk lack those of the time in which the law in the basin forms.
            tolerance = 4 * sem + error + rate * (_forming * rate / (2 * _curvatures[1]))
            found.append(Claim(f"process, {noise} noise: exits per time", measured, rate, tolerance))
        aligned, sem = self.rates["normal, minibatch"]
        for name in ("isotropic", "diagonal"):
            slower, other = self.rates[f"normal, {name}"]
            text = f"minibatch noise leaves faster than {name} noise of its trace, by more than {_factor:g} times"
            found.append(Claim(text, aligned, _factor * slower, -4 * float(np.hypot(sem, _factor * other)), ">"))
        matched, other = self.rates["normal, Hessian"]
        found.append(Claim("Hessian-shaped noise is as fast", matched, aligned, 4 * float(np.hypot(sem, other))))
        sgd, other = self.rates["SGD"]
        slower, third = self.rates["normal, isotropic"]
        found.append(
            Claim("SGD itself is faster than isotropic noise", sgd, slower, -4 * float(np.hypot(other, third)), ">")
        )
        return found

    def plot(self, axes=None) -> np.ndarray:
        """Parts still inside against time, and exits per time."""
        from ..plots import experiments

        return experiments.anisotropic_escape(self, axes)

    def __str__(self) -> str:
        rows = [[name, *values] for name, values in self.rates.items()]
        rows += [[f"Fokker-Planck, {name}", *values] for name, values in self.solved.items()]
        return "\n".join([table(["route", "exits per time", "error"], rows), *map(str, self.claims)])


# f is 10 a² + 100 b²: its Hessian is twice that.
_curvatures = np.array([10.0, 100.0])

# Relaxation times 1/h of the steep direction in which the law of the basin forms, about.
_forming = 3.0

# How many times as fast the noise of minibatches is, at least: what the barriers say, b²/2σ² with σ² ∝ Σ_bb, is more.
_factor = 3.0


def run(config: Config | None = None, key=0) -> Result:
    """Exits from the sharp basin under each noise."""
    config = Config() if config is None else config
    loss, start = _examples(config), jnp.ones(2)
    minibatch = Minibatch(loss, 1)
    noises = {"minibatch": minibatch, **{name: EqualTrace(minibatch, name) for name in _controls}}
    exits = {"SGD": _discrete(config, loss, None, key)}
    for k, (name, noise) in enumerate(noises.items()):
        exits[f"normal, {name}"] = _discrete(config, loss, noise, key + 1 + k)
    for k, name in enumerate(("minibatch", "isotropic")):
        dt = config.learning_rate / config.substeps
        out = sde.simulate(
            SGD(loss, noises[name], config.learning_rate), sde.EulerMaruyama(), start, config.time, dt, key + 11 + k,
            config.runs, observe={"exit": sde.FirstPassage(_depth)},
        )  # fmt: skip
        exits[f"process, {name}"] = out["exit"]
    times = np.linspace(0, config.time, 60)[:-1]
    return Result(
        config=config,
        rates={name: (found.rate, found.rate_sem) for name, found in exits.items()},
        solved={name: _solved(config, _spread(config, name)) for name in ("minibatch", "isotropic")},
        times=times,
        inside={name: found.survival(times) for name, found in exits.items()},
    )


_controls = ("diagonal", "isotropic", "Hessian")


def _turned(w: Float[Array, "2"]) -> Float[Array, "2"]:
    """(a, b): along (1, -1) and (1, 1)."""
    return jnp.stack([w[0] - w[1], w[0] + w[1]]) / np.sqrt(2.0)


def _basins(w: Float[Array, "2"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    z = _turned(w - 1)
    return jnp.asarray(_curvatures, w.dtype) @ z**2, jnp.sum((w + 1) ** 2)


def _depth(w: Float[Array, "2"]) -> Float[Array, ""]:
    """Positive in the sharp basin; a distance, nearly."""
    sharp, flat = _basins(w)
    return jnp.sqrt(flat) - jnp.sqrt(sharp)


def _example(w: Float[Array, "2"], push: Float[Array, "2"]) -> Float[Array, ""]:
    return jnp.minimum(*_basins(w)) - push @ _turned(w)


def _examples(config: Config) -> FiniteSum:
    """2Hx_i for normal x_i of which the mean is 0 and the covariance has the shape of H⁻¹, both exactly."""
    z = np.random.default_rng(0).normal(size=(config.examples, 2))
    z = z - z.mean(axis=0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, ddof=0))).T
    return FiniteSum(_example, white * np.sqrt(_spread(config, "minibatch")))


def _spread(config: Config, name: str) -> Float[np.ndarray, "2"]:
    """The covariance Σ of the gradients along a and b."""
    shape = 2 * _curvatures * 2 * config.width**2 / config.learning_rate
    return shape if name == "minibatch" else np.full(2, shape.mean())


def _discrete(config: Config, loss: FiniteSum, noise: AbstractGradientNoise | None, key) -> sde.FirstPassageResult:
    sgd = optimizers.SGD(config.learning_rate, 1 if noise is None else None)
    out = optimizers.run(
        sgd, loss, jnp.ones(2), steps=round(config.time / config.learning_rate), runs=config.runs, key=key, noise=noise,
        observe={"exit": sde.FirstPassage(_depth)},
    )  # fmt: skip
    return out["exit"]


def _solved(config: Config, spread: Float[np.ndarray, "2"]) -> tuple[float, float]:
    """1/T of the mean exit time T from the minimum, along the axes of the basin."""
    noise = np.sqrt(config.learning_rate * spread)
    process = Diffusion(
        lambda t, z: -2 * jnp.asarray(_curvatures, z.dtype) * z, lambda t, z: jnp.asarray(noise, z.dtype)
    )
    grid = Grid.uniform((-1.2, 1.2, config.cells), (-0.4, 0.4, config.cells))

    def inside(z):
        sharp = jnp.asarray(_curvatures, z.dtype) @ z**2
        return sharp < z[0] ** 2 + (z[1] + 2 * np.sqrt(2.0)) ** 2

    found = fokker_planck.exit_time(process, grid, inside)
    middle = tuple(n // 2 for n in grid.shape)
    time = float(found.values[middle])
    return 1 / time, float(found.error[middle]) / time**2
