"""Two minima of one shape and depth, one noisier than the other: SGD prefers the quiet one.

f = (x² - 1)²/4 with D = D₁ on the left and D₂ > D₁ on the right, joined smoothly near 0. The invariant law is
∝ D⁻¹ exp(-∫f'/D) (`sgdsde.theory.line`). Occupancy of the quiet well and mean switching times, by quadrature, by the
Fokker-Planck equation, by particles and by discrete SGD. Gradient descent can't tell the two minima apart.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import Density, Grid, fokker_planck, sde

from .. import optimizers, theory
from ..losses import DoubleWell
from ..models import SGD
from ..noise import Covariance
from .claims import Claim, table
from .extrapolation import extrapolated


@dataclasses.dataclass(frozen=True)
class Config:
    """D on both sides, the width over which it changes, the η of discrete SGD, particles and their step."""

    quiet: float = 0.1
    noisy: float = 0.2
    width: float = 0.1
    learning_rate: float = 0.1
    paths: int = 8000
    dt: float = 0.02

    @staticmethod
    def fast() -> "Config":
        """More noise, so that wells are left sooner; fewer particles in longer steps."""
        return Config(quiet=0.2, noisy=0.4, paths=1000, dt=0.02)


class Result(eqx.Module):
    """P(X < 0) and mean times from the quiet to the noisy minimum and back, with standard errors where sampled."""

    config: Config = eqx.field(static=True)
    occupancy: dict[str, tuple[float, float]]
    switching: dict[str, Float[np.ndarray, "2 2"]]
    law: Density

    @property
    def claims(self) -> list[Claim]:
        """All routes agree on occupancy and on both switching times, and these on the occupancy."""
        exact, times = self.occupancy["quadrature"][0], self.switching["quadrature"][:, 0]
        found = [
            Claim("Fokker-Planck: P(quiet well)", self.occupancy["Fokker-Planck"][0], exact, 1e-4),
            Claim(
                "particles: P(quiet well)", self.occupancy["particles"][0], exact, 4 * self.occupancy["particles"][1]
            ),
            Claim("SGD prefers the quiet well", exact, 0.5, 0.0, ">"),
        ]
        for k, way in enumerate(("quiet to noisy", "noisy to quiet")):
            found.append(
                Claim(f"Fokker-Planck: {way}", self.switching["Fokker-Planck"][k, 0], times[k], 1e-5 * times[k])
            )
            mean, sem = self.switching["particles"][k]
            found.append(Claim(f"particles: {way}", mean, times[k], 4 * sem))
        mean, sem = self.occupancy["SGD"]
        # SGD's own law differs from its limit at first order in η: a bound on it, from η f'' up to 2η.
        found.append(Claim("discrete SGD: P(quiet well)", mean, exact, 4 * sem + 2 * self.config.learning_rate * 0.25))
        return found

    def plot(self, axes=None) -> np.ndarray:
        """The law with the loss, and occupancies and times by every route."""
        from ..plots import experiments

        return experiments.two_minima(self, axes)

    def __str__(self) -> str:
        rows = [[route, "P(quiet)", *values] for route, values in self.occupancy.items()]
        for k, way in enumerate(("quiet → noisy", "noisy → quiet")):
            rows += [[route, way, *values[k]] for route, values in self.switching.items()]
        return "\n".join([table(["route", "what", "value", "standard error"], rows), *map(str, self.claims)])


_loss = DoubleWell()

# Particles are watched for so many mean times, and sampled for occupancy after so many relaxation times.
_patience, _relaxed = 12, 8


def run(config: Config | None = None, key=0) -> Result:
    """Occupancies and switching times by every route."""
    config = Config() if config is None else config
    model = _model(config)

    def diffusion(x):
        return _diffusion(x, config)

    there, back = (theory.line.mean_passage_time(_loss, diffusion, a, -a) for a in (-1.0, 1.0))
    occupancy = {"quadrature": (theory.line.mass_below(_loss, diffusion, 0.0), 0.0)}
    switching = {"quadrature": np.array([[there, 0.0], [back, 0.0]])}
    law = fokker_planck.stationary(fokker_planck.assemble(model, Grid.uniform((-4.0, 4.0, 640))))
    occupancy["Fokker-Planck"] = float(law.mass[:320].sum()), 0.0
    switching["Fokker-Planck"] = np.array([[_solved(model, sign), 0.0] for sign in (-1.0, 1.0)])
    relaxation = 1 / (1 / there + 1 / back)
    occupancy["particles"] = _occupancy(model, relaxation, config, key)
    switching["particles"] = np.array(
        [_sampled(model, sign, mean, config, key) for sign, mean in ((-1.0, there), (1.0, back))]
    )
    occupancy["SGD"] = _discrete(model, relaxation, config, key)
    return Result(config, occupancy, switching, law)


def _diffusion(x, config: Config):
    return config.quiet + (config.noisy - config.quiet) * jax.nn.sigmoid(4 * x[0] / config.width)


def _model(config: Config) -> SGD:
    # D = ηC/2 with one example a batch.
    eta = config.learning_rate
    return SGD(_loss, Covariance(lambda x: (2 / eta) * _diffusion(x, config)[None, None], 1), eta)


def _solved(model: SGD, start: float) -> float:
    # A centre at the start, and some cells behind the other minimum.
    low, high = (-4.0125, 1.1125) if start < 0 else (-1.1125, 4.0125)
    grid = Grid.uniform((low, high, 205))
    tau = fokker_planck.exit_time(model, grid, inside=lambda x: -jnp.sign(start) * x[0] < 1)
    return float(tau.values[np.argmin(np.abs(grid.centres[0] - start))])


def _left(t, x):
    return jnp.where(x[0] < 0, 1.0, 0.0).astype(x.dtype)


def _occupancy(model: SGD, relaxation: float, config: Config, key) -> tuple[float, float]:
    # Both wells in equal parts at the start.
    def measure(dt):
        steps = round(2 * _relaxed * relaxation / dt)
        out = sde.simulate(
            model, sde.EulerMaruyama(), _starts(config.paths), t1=steps * dt, dt=dt, key=key,
            observe={"left": sde.Moments(_left)}, burn_in=round(steps / 2) * dt, every=max(1, round(0.5 / dt)),
        )  # fmt: skip
        return float(out["left"].mean), float(out["left"].sem)

    return extrapolated(measure, config.dt)


def _starts(n: int) -> Float[np.ndarray, "n 1"]:
    return np.where(np.arange(n) % 2 == 0, -1.0, 1.0)[:, None]


def _sampled(model: SGD, start: float, mean: float, config: Config, key) -> tuple[float, float]:
    def inside(x):
        return 1 + np.sign(start) * x[0]

    def measure(dt):
        steps = round(_patience * mean / dt)
        out = sde.simulate(
            model, sde.EulerMaruyama(), jnp.full(1, start), t1=steps * dt, dt=dt, key=key, paths=config.paths,
            observe={"exit": sde.FirstPassage(inside)},
        )  # fmt: skip
        return out["exit"].mean, out["exit"].sem

    return extrapolated(measure, config.dt)


def _discrete(model: SGD, relaxation: float, config: Config, key) -> tuple[float, float]:
    steps = round(2 * _relaxed * relaxation / config.learning_rate)
    out = optimizers.run(
        optimizers.SGD(config.learning_rate), _loss, _starts(config.paths), steps=steps, key=key,
        noise=model.gradient_noise, observe={"left": sde.Moments(_left)}, burn_in=steps // 2, every=5,
    )  # fmt: skip
    return float(out["left"].mean), float(out["left"].sem)
