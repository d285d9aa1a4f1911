"""Which minima on one valley: constant, loss-proportional, Hessian-matched and label noise on a ring.

f = f₀ + r(x)²/2, r = √a(φ) (|x|² - 1)/2, a = 1 + cos(φ)/2: the points of the unit circle are minima,
sharp on the right and flat on the left, where cos φ < 0. The first three kinds of noise have invariant laws: in closed
form for the first two, by the Fokker-Planck equation for all. Label noise pushes along the circle towards the
flattest point, tan(φ/2) ∝ exp(ηs²t/8), and has no law with a width in the limit of small η.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import integrate, special

from solvers import Density, Grid, fokker_planck, sde

from .. import optimizers
from ..losses import RingValley, SquaredLoss
from ..models import SGD
from ..noise import Constant, HessianMatched, LossProportional
from .claims import Claim, table
from .extrapolation import extrapolated


@dataclasses.dataclass(frozen=True)
class Config:
    """κ = ησ and f₀; cells an axis; particles, their time and step; η, s, time and runs of label noise."""

    temperature: float = 0.5
    hessian_temperature: float = 0.1
    floor: float = 0.1
    cells: int = 128
    paths: int = 4000
    time: float = 60.0
    dt: float = 0.01
    label_rate: float = 0.02
    label_std: float = 1.0
    label_time: float = 150.0
    runs: int = 2000

    @staticmethod
    def fast() -> "Config":
        """Fewer cells, particles and runs."""
        return Config(cells=64, paths=1500, time=30.0, dt=0.02, label_time=100.0, runs=100)


class Result(eqx.Module):
    """P(cos φ < 0) by closed form, Fokker-Planck (with its error) and particles (with standard error), for each noise.

    `angles`: label noise's mean of log tan(φ/2) at `label_times`, its standard error, and the prediction.
    """

    config: Config = eqx.field(static=True)
    flat: dict[str, dict[str, tuple[float, float]]]
    limit: float
    marginals: dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]
    label_times: Float[np.ndarray, " s"]
    angles: Float[np.ndarray, "3 s"]

    @property
    def claims(self) -> list[Claim]:
        """The routes agree for each noise; loss-proportional noise prefers the flat side more; labels drift to it."""
        found = []
        for name, routes in self.flat.items():
            solved, error = routes["Fokker-Planck"]
            if "closed form" in routes:
                found.append(Claim(f"{name}: Fokker-Planck", solved, routes["closed form"][0], error))
            mean, sem = routes["particles"]
            found.append(Claim(f"{name}: particles", mean, solved, 4 * sem + error))
        constant, proportional = (self.flat[name]["closed form"][0] for name in ("constant", "loss-proportional"))
        found.append(Claim("loss-proportional above constant noise", proportional, constant, 0.0, ">"))
        found.append(Claim("both below the limit det(H)^(-1/2)", proportional, self.limit, 0.0, "<"))
        rate, sem, expected = self._drift
        tolerance = 4 * sem + _finite_rate * self.config.label_rate * expected
        return [*found, Claim("label noise: rate of log tan(φ/2)", rate, expected, tolerance)]

    @property
    def _drift(self) -> tuple[float, float, float]:
        span = self.label_times[-1] - self.label_times[0]
        mean, sem, expected = (self.angles[k, -1] for k in range(3))
        return (mean - self.angles[0, 0]) / span, sem / span, (expected - self.angles[2, 0]) / span

    def plot(self, axes=None) -> np.ndarray:
        """Laws of the angle, and the drift of label noise."""
        from ..plots import experiments

        return experiments.flat_minima(self, axes)

    def __str__(self) -> str:
        rows = [[name, route, *values] for name, routes in self.flat.items() for route, values in routes.items()]
        rate, sem, expected = self._drift
        rows += [["label", "runs: rate of log tan(φ/2)", rate, sem], ["label", "flow of -∇tr H", expected, 0.0]]
        return "\n".join([table(["noise", "route", "P(cos φ < 0)", "error"], rows), *map(str, self.claims)])


_amplitude = 0.5

# The flow of -∇ tr H is the limit η → 0: corrections of relative size η h, with h about 1 and a constant of a few.
_finite_rate = 5.0

# Points along each axis of a cell over which its mass is spread for the law of the angle.
_points = 8

# The law is sampled after a third of the time, at this distance. Hessian-matched noise needs more time, since along the
# ring, where H = 0, it has only its floor.
_spacing, _slowness = 0.5, 4


def run(config: Config | None = None, key=0) -> Result:
    """The laws of the angle under each noise."""
    config = Config() if config is None else config
    valley = RingValley(config.floor, _amplitude)
    noises = {
        "constant": Constant(config.temperature / 0.1),
        "loss-proportional": LossProportional(config.temperature / 0.1),
        "Hessian-matched": HessianMatched(config.hessian_temperature / 0.1, floor=0.2, rule="abs"),
    }
    closed = {"constant": _gibbs, "loss-proportional": _power_law}
    flat, marginals = {}, {}
    for name, noise in noises.items():
        model = SGD(valley, noise, 0.1)
        routes = {"closed form": (_flat_part(closed[name], config), 1e-8)} if name in closed else {}
        law, routes["Fokker-Planck"] = _solved(model, config)
        routes["particles"] = _sampled(model, config, key)
        flat[name], marginals[name] = routes, _angles(law)
    limit = _flat_part(lambda a, c: a**-0.5, config)
    times, angles = _label_noise(config, key)
    return Result(config, flat, limit, marginals, times, angles)


def _gibbs(a, config: Config):
    kappa = config.temperature
    return np.sqrt(8 * np.pi * kappa / a) * (1 + special.erf(np.sqrt(a / (8 * kappa)))) / 4


def _power_law(a, config: Config):
    p, c2 = 1 + 1 / config.temperature, a / (8 * config.floor)
    return a**-0.5 * special.beta(0.5, p - 0.5) * (1 + special.betainc(0.5, p - 0.5, c2 / (1 + c2)))


def _flat_part(weight, config: Config) -> float:
    def of(phi):
        return weight(1 + _amplitude * np.cos(phi), config)

    return float(integrate.quad(of, np.pi / 2, np.pi)[0] / integrate.quad(of, 0, np.pi)[0])


def _solved(model: SGD, config: Config) -> tuple[Density, tuple[float, float]]:
    n = config.cells
    if isinstance(model.gradient_noise, LossProportional):
        grid = Grid.stretched((20.0, n, 1.0), (20.0, n, 1.0))
    else:
        grid = Grid.uniform((-3.0, 3.0, n), (-3.0, 3.0, n))
    fine = fokker_planck.stationary(fokker_planck.assemble(model, grid))
    coarse = fokker_planck.stationary(fokker_planck.assemble(model, grid.coarsen()))
    values = [float(p.mass[: p.grid.shape[0] // 2].sum()) for p in (fine, coarse)]
    # Second order: a third of what halving the cells changes; three times that to be safe.
    return fine, (values[0], abs(values[0] - values[1]) + 1e-4)


def _left(t, x):
    return jnp.where(x[0] < 0, 1.0, 0.0).astype(x.dtype)


def _sampled(model: SGD, config: Config, key) -> tuple[float, float]:
    if isinstance(model.gradient_noise, HessianMatched):
        # At the origin the angle jumps, and the Hessian is like 1/|x|²: a step from there may end so far out that
        # Euler-Maruyama explodes.
        time = _slowness * config.time
        return extrapolated(lambda dt: _share(model, sde.TamedEuler(), time, dt, config, key), 2 * config.dt)
    # Of second order. Loss-proportional noise grows like |x|² here, too fast for methods without the change of time.
    method = sde.LeimkuhlerMatthews()
    changed = isinstance(model.gradient_noise, LossProportional)
    return _share(model, sde.TimeChanged(method) if changed else method, config.time, config.dt, config, key)


def _share(
    model: SGD, method: sde.AbstractMethod | sde.TimeChanged, time: float, dt: float, config: Config, key
) -> tuple[float, float]:
    out = sde.simulate(
        model, method, jnp.array([0.0, 1.0]), t1=time, dt=dt, key=key, paths=config.paths,
        observe={"left": sde.Moments(_left)}, burn_in=time / 3, every=round(_spacing / dt),
    )  # fmt: skip
    return float(out["left"].mean), float(out["left"].sem)


def _angles(law: Density) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The density of the angle, in 50 sectors; the mass of a cell is spread over points within it."""
    within = (np.arange(_points) + 0.5) / _points
    inner = [(e[:-1, None] + np.diff(e)[:, None] * within).ravel() for e in law.grid.edges]
    x, y = np.meshgrid(*inner, indexing="ij")
    mass = np.repeat(np.repeat(law.mass, _points, axis=0), _points, axis=1) / _points**2
    # None of the edges is a diagonal, on which many of the points lie.
    edges = np.linspace(0, np.pi, 26)
    mass = np.histogram(np.arccos(x / np.hypot(x, y)), edges, weights=mass)[0]
    return 0.5 * (edges[1:] + edges[:-1]), mass / np.diff(edges) / 2


def _residual(x, _):
    square = x @ x
    a = 1 + _amplitude * x[0] / jnp.sqrt(square)
    return jnp.sqrt(a) * (square - 1) / 2


def _label_noise(config: Config, key) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, "3 s"]]:
    """Discrete SGD with label noise from φ = 0.6 on the circle: mean log tan(φ/2) against the flow of -∇ tr H.

    On the circle tr H = a, the gradient noise has the covariance s²H, and the limit is φ' = -(ηs²/4) a'(φ).
    """
    eta, s, start = config.label_rate, config.label_std, 0.6
    loss = SquaredLoss(_residual, np.zeros(1), np.zeros(1), floor=config.floor)
    steps = round(config.label_time / eta)
    saves = np.linspace(steps // 10, steps, 10).astype(int)
    out = optimizers.run(
        optimizers.LabelNoiseSGD(eta, 1, std=s), loss, jnp.array([np.cos(start), np.sin(start)]), steps=steps,
        runs=config.runs, key=key, save_at=saves,
    )  # fmt: skip
    assert out.xs is not None
    assert out.ts is not None
    phi = np.abs(np.arctan2(out.xs[..., 1], out.xs[..., 0]))
    value = np.log(np.tan(phi / 2))
    expected = np.log(np.tan(start / 2)) + eta * s**2 * _amplitude / 4 * out.ts
    sem = value.std(axis=1, ddof=1) / np.sqrt(value.shape[1])
    return out.ts, np.array([value.mean(axis=1), sem, expected])
