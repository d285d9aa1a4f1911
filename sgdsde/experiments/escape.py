"""How long SGD takes from well to well: Arrhenius' law for constant noise, a power law for loss-proportional noise.

f = f₀ + (x² - 1)²/4. Under constant noise the time grows as exp((f_s - f_a)/κ), whatever f₀ is; under loss-proportional
noise as (f_s/f_a)^(1/κ + 1/2): the ratio of losses decides. Mean times from -1 to 1 by the Fokker-Planck equation, by
particles with bridges, by quadrature (`sgdsde.theory.line`) and by the asymptotic formulas (`sgdsde.theory.escape`).
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import Grid, fokker_planck, sde

from .. import theory
from ..losses import DoubleWell
from ..models import SGD
from ..noise import Constant, LossProportional
from .claims import Claim, table
from .extrapolation import extrapolated


@dataclasses.dataclass(frozen=True)
class Config:
    """Temperatures κ = ησ, particles at the first; the floor f₀, and floors that are compared; particles and step."""

    temperatures: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    floor: float = 0.25
    floors: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 1.0)
    paths: int = 20_000
    dt: float = 0.01

    @staticmethod
    def fast() -> "Config":
        """Fewer temperatures, and fewer particles in longer steps."""
        return Config(temperatures=(0.5, 0.25, 0.125, 0.0625), paths=1000, dt=0.02)


class Result(eqx.Module):
    """Mean times from -1 to 1; axis 0 is constant and loss-proportional noise.

    `exact`, `solved`, `asymptotic` over the temperatures; `by_floor` over the floors at the first temperature; the
    particles' `sampled` and its standard error `sem` at the first temperature, extrapolated to dt → 0.
    """

    config: Config = eqx.field(static=True)
    exact: Float[np.ndarray, "2 kappas"]
    solved: Float[np.ndarray, "2 kappas"]
    asymptotic: Float[np.ndarray, "2 kappas"]
    by_floor: Float[np.ndarray, "2 floors"]
    sampled: Float[np.ndarray, "2"]
    sem: Float[np.ndarray, "2"]

    @property
    def claims(self) -> list[Claim]:
        """The routes agree, both laws have their slopes, and the floor matters to one of them only."""
        found = []
        for k, name in enumerate(_noises):
            worst = float(np.max(np.abs(self.solved[k] / self.exact[k] - 1)))
            found.append(Claim(f"{name}: Fokker-Planck and quadrature differ by at most", worst, 0.0, 1e-6))
            text = f"{name}: particles take the exact time"
            found.append(Claim(text, float(self.sampled[k]), float(self.exact[k, 0]), 4 * float(self.sem[k])))
            coldest = self.asymptotic[k, -1] / self.exact[k, -1]
            found.append(Claim(f"{name}: the asymptotic formula at the lowest κ over the time", coldest, 1.0, 0.15))
            found.append(Claim(f"{name}: d log(time) / d(1/κ) there", self.slopes[k], self.barriers[k], 0.06))
        spread = float(np.ptp(self.by_floor[0]) / self.by_floor[0, 0])
        found.append(Claim("constant: the floor does not matter, relative spread", spread, 0.0, 1e-6))
        factor = float(self.by_floor[1, 0] / self.by_floor[1, -1])
        return [
            *found,
            Claim("loss-proportional: time at the lowest floor over that at the highest", factor, 5.0, 0, ">"),
        ]

    @property
    def slopes(self) -> Float[np.ndarray, "2"]:
        """The change of log(time) with 1/κ between the two lowest temperatures, prefactor of the formulas taken out."""
        inverse = 1 / np.array(self.config.temperatures[-2:])
        return np.diff(np.log(self.exact[:, -2:]), axis=1)[:, 0] / np.diff(inverse)[0]

    @property
    def barriers(self) -> tuple[float, float]:
        """What the formulas say of the slopes: the difference of losses, and the logarithm of their ratio."""
        return 0.25, float(np.log1p(0.25 / self.config.floor))

    def plot(self, axes=None) -> np.ndarray:
        """Times against 1/κ, and against the floor."""
        from ..plots import experiments

        return experiments.escape(self, axes)

    def __str__(self) -> str:
        rows = []
        for k, name in enumerate(_noises):
            for i, kappa in enumerate(self.config.temperatures):
                sampled = f"{self.sampled[k]:.5g} ± {self.sem[k]:.2g}" if i == 0 else "-"
                rows.append([name, kappa, self.exact[k, i], self.solved[k, i], self.asymptotic[k, i], sampled])
        head = ["noise", "κ", "quadrature", "Fokker-Planck", "asymptotic", "particles"]
        return "\n".join([table(head, rows), *map(str, self.claims)])


_noises = ("constant", "loss-proportional")

# Particles are watched for so many mean times: e^-12 of them are still inside.
_patience = 12


def run(config: Config | None = None, key=0) -> Result:
    """Mean times from -1 to 1 by all routes."""
    config = Config() if config is None else config
    well = DoubleWell(config.floor)
    each = [[_routes(noise, well, kappa) for kappa in config.temperatures] for noise in _noises]
    exact, solved, asymptotic = np.moveaxis(np.array(each), -1, 0)
    hot = config.temperatures[0]
    by_floor = [[_exact(noise, DoubleWell(floor), hot) for floor in config.floors] for noise in _noises]
    sampled = [_sampled(noise, well, hot, exact[k, 0], config, key) for k, noise in enumerate(_noises)]
    mean, sem = np.array(sampled).T
    return Result(config, exact, solved, asymptotic, np.array(by_floor), mean, sem)


def _model(noise: str, well: DoubleWell, kappa: float) -> SGD:
    return SGD(well, (Constant if noise == "constant" else LossProportional)(kappa / 0.1), 0.1)


def _exact(noise: str, well: DoubleWell, kappa: float) -> float:
    diffusion = kappa if noise == "constant" else lambda x: kappa * well(x)
    return theory.line.mean_passage_time(well, diffusion, -1.0, 1.0)


def _routes(noise: str, well: DoubleWell, kappa: float) -> tuple[float, float, float]:
    # A centre at -1, and some cells behind 1.
    grid = Grid.uniform((-4.9875, 1.1125, 244))
    tau = fokker_planck.exit_time(_model(noise, well, kappa), grid, inside=lambda x: x[0] < 1)
    formula = theory.kramers_time if noise == "constant" else theory.power_law_escape_time
    start = int(np.argmin(np.abs(grid.centres[0] + 1)))
    asymptotic = formula(well, np.array([-1.0]), np.array([0.0]), kappa)
    return _exact(noise, well, kappa), float(tau.values[start]), asymptotic


def _inside(x):
    return 1 - x[0]


def _sampled(noise: str, well: DoubleWell, kappa: float, mean: float, config: Config, key) -> tuple[float, float]:
    # First passages have a bias of first order in dt.
    return extrapolated(lambda dt: _mean_exit(noise, well, kappa, mean, config, dt, key), config.dt)


def _mean_exit(noise, well, kappa, mean, config: Config, dt: float, key) -> tuple[float, float]:
    steps = round(_patience * mean / (2 * config.dt)) * 2 * config.dt / dt
    out = sde.simulate(
        _model(noise, well, kappa),
        sde.EulerMaruyama(),
        -jnp.ones(1),
        t1=round(steps) * dt,
        dt=dt,
        key=key,
        paths=config.paths,
        observe={"exit": sde.FirstPassage(_inside)},
    )
    return out["exit"].mean, out["exit"].sem
