"""How good SGD's continuum models are, and where they end: weak orders 1 and 2, the SVAG ladder, and two breakdowns.

On a loss that is no quadratic, with noise that depends on the state, expectations at a fixed time differ from those of
the first-order equation by O(η) and of the second-order one by O(η²) (`sgdsde.validity`). With minibatches of losses
h_i x²/2 all is known exactly (`sgdsde.theory.linear_stability`): SVAG with amplification l comes to the SDE like 1/l.
At finite η the models break down: beyond ηh = 2 SGD diverges and its SDE does not; and of two minima that minibatches
agree on, SGD leaves the one where they disagree about the curvature, from every start, and its SDE never does.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from solvers import sde

from .. import optimizers
from ..losses import FiniteSum
from ..models import SGD, ModifiedSGD
from ..noise import Constant, LossProportional, Minibatch
from ..theory import linear_stability as theory
from ..weak_error import Validity, validity
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Learning rates and runs of the study of orders; amplifications of SVAG and runs of each; runs at breakdowns."""

    learning_rates: tuple[float, ...] = (0.1, 0.05, 0.025, 0.0125)
    runs: int = 131_072
    levels: tuple[int, ...] = (1, 2, 4, 8)
    ladder_runs: int = 1_000_000
    breakdown_runs: int = 10_000

    @staticmethod
    def fast() -> "Config":
        """Fewer runs and rates."""
        return Config((0.1, 0.05), 16_384, (1, 2), 50_000, 256)


class Result(eqx.Module):
    """The two studies; E x² of SVAG for each level, of runs with standard errors and exactly; and the breakdowns.

    `edge`: E x² at ηh = 2.2, axis 0 SGD and its SDE, each measured, standard error, exact. `left`: the fractions of
    runs of SGD and of paths of its SDE that left the minimum where curvatures disagree.
    """

    config: Config = eqx.field(static=True)
    studies: dict[int, Validity]
    ladder: Float[np.ndarray, "3 levels"]
    limit: float
    edge: Float[np.ndarray, "2 3"]
    left: Float[np.ndarray, " 2"]

    @property
    def claims(self) -> list[Claim]:
        """Orders 1 and 2; errors of SVAG like 1/l; SGD diverges, or escapes, where its SDE does not."""
        found = []
        # The next power of η bends the curve: by the curvature of the loss, about 1.5, times the largest rate.
        bend = 1.5 * max(self.config.learning_rates)
        for power, study in self.studies.items():
            for name, order, (low, high) in zip(study.names, study.orders, study.intervals, strict=True):
                text = f"{study.process}: order of the error of E {name}"
                found.append(Claim(text, float(order), power, float(bend + 0.5 * (high - low))))
        measured, sem, exact = self.ladder.tolist()
        for level, m, s, e in zip(self.config.levels, measured, sem, exact, strict=True):
            found.append(Claim(f"SVAG, l = {level}: E x²", m, e, 4 * s))
        halving = (exact[-1] - self.limit) / (exact[-2] - self.limit)
        ratio = self.config.levels[-2] / self.config.levels[-1]
        found.append(Claim("SVAG: its distance from the SDE falls like 1/l", halving, ratio, 0.1))
        for name, (value, error, known) in zip(("SGD", "its SDE"), self.edge.tolist(), strict=True):
            found.append(Claim(f"ηh = {_edge}: E x² of {name}", value, known, 4 * error))
        found.append(
            Claim(f"ηh = {_edge}: SGD has left its start behind", float(self.edge[0, 2]), 100 * _start**2, 0.0, ">")
        )
        found.append(Claim(f"ηh = {_edge}: its SDE has not", float(self.edge[1, 2]), 2 * _start**2, 0.0, "<"))
        discrete, continuous = theory.lyapunov_exponents(_curvatures, _rate)
        found.append(Claim("two minima: log|x - 1| of SGD grows", discrete, 0.0, 0.0, ">"))
        found.append(Claim("two minima: that of its SDE falls", continuous, 0.0, 0.0, "<"))
        found.append(Claim("two minima: runs of SGD that left", float(self.left[0]), 1.0, 0.0))
        # One path in 10⁷ would: `theory.escape_probability` of the distances of the basin's edge and the start.
        found.append(Claim("two minima: paths of its SDE that left", float(self.left[1]), 0.0, 0.0))
        return found

    def plot(self, axes=None) -> np.ndarray:
        """Errors against η, E x² against l, and what growth rates and escapes say of the breakdowns."""
        from ..plots import experiments

        return experiments.weak_order(self, axes)

    def __str__(self) -> str:
        measured, sem, exact = self.ladder
        rows = [
            [f"SVAG, l = {level}", *row] for level, *row in zip(self.config.levels, measured, sem, exact, strict=True)
        ]
        rows.append(["SDE", "-", "-", self.limit])
        rows += [[f"ηh = {_edge}, {n}", *row] for n, row in zip(("SGD", "SDE"), self.edge, strict=True)]
        rows += [
            [f"left the minimum, {n}", value, "-", "-"] for n, value in zip(("SGD", "SDE"), self.left, strict=True)
        ]
        head = ["E x²", "measured", "standard error", "exact"]
        return "\n".join([*map(str, self.studies.values()), table(head, rows), *map(str, self.claims)])


# Curvatures, learning rate and steps of the ladder.
_ladder_curvatures, _ladder_rate, _ladder_steps = np.array([0.25, 1.75]), 0.4, 5

# ηh beyond the edge, steps, start.
_edge, _edge_steps, _start = 2.2, 20, 1.0

# f_1 = min(x², 0.1 (x-1)²) and f_2 = min(x², 1.9 (x-1)²): the minibatches agree at 0 and disagree at 1.
_curvatures, _rate, _escape_steps, _close = np.array([0.2, 3.8]), 0.7, 200, 1e-3

# Euler-Maruyama steps of the SDE in one of SGD: around a minimum where G = 0 the path is no smoother than that.
_substeps = 16


def run(config: Config | None = None, key=0) -> Result:
    """Coupled runs of SGD and both its models, runs of SVAG, and runs of SGD and its SDE where they part."""
    config = Config() if config is None else config
    measured, sem = np.transpose([_ladder(level, config, key) for level in config.levels])
    moments = [theory.second_moment(_ladder_curvatures, _ladder_rate, _ladder_steps, level) for level in config.levels]
    growth = theory.mean_square_rates(_ladder_curvatures, _ladder_rate)[1]
    return Result(
        config,
        {power: _study(model, config, key) for power, model in ((1, SGD), (2, ModifiedSGD))},
        np.stack([measured, sem, np.array(moments)]),
        float(np.exp(growth * _ladder_rate * _ladder_steps)),
        _beyond_the_edge(config, key),
        _escapes(config, key),
    )


def _quartic(x):
    return 0.5 + 0.5 * jnp.sum(x**2) + jnp.sum(x**4) / 8


def _bowl(x, curvature=1.0):
    return 0.5 * curvature * jnp.sum(x**2)


def _wells(x, c):
    return jnp.minimum(jnp.sum(x**2), c * jnp.sum((x - 1) ** 2))


def _first(x):
    return x[0]


def _second(x):
    return x[0] ** 2


def _study(model, config: Config, key) -> Validity:
    process, functionals = model(_quartic, LossProportional(0.5), 0.1), {"x": _first, "x²": _second}
    start, rates = np.full(1, _start), config.learning_rates
    return validity(process, optimizers.SGD(0.1), start, 1.0, rates, functionals, key, config.runs)


def _ladder(level: int, config: Config, key) -> tuple[float, float]:
    loss = FiniteSum(_bowl, _ladder_curvatures)
    method = optimizers.SVAG(_ladder_rate, 1, amplification=level)
    steps = _ladder_steps * level
    x = optimizers.run(method, loss, np.ones(1), steps=steps, runs=config.ladder_runs, key=key).final[:, 0]
    return _mean_square(x)


def _mean_square(x) -> tuple[float, float]:
    squares = np.asarray(x, np.float64) ** 2
    return float(squares.mean()), float(squares.std(ddof=1) / np.sqrt(squares.size))


def _beyond_the_edge(config: Config, key) -> Float[np.ndarray, "2 3"]:
    # f = x²/2, so h = 1; Var g = 1 is σ = 1/2.
    eta, start, noise, runs = _edge, np.full(1, _start), Constant(0.5), config.breakdown_runs
    x = optimizers.run(optimizers.SGD(eta), _bowl, start, steps=_edge_steps, runs=runs, key=key, noise=noise).final
    t = eta * _edge_steps
    paths = sde.simulate(SGD(_bowl, noise, eta), sde.ExponentialEuler(), start, t, eta / _substeps, key, runs)
    factor = (1 - eta) ** (2 * _edge_steps)
    exact = (
        factor * _start**2 + eta / (2 - eta) * (1 - factor),
        _start**2 * np.exp(-2 * t) + eta / 2 * -np.expm1(-2 * t),
    )
    return np.array([[*_mean_square(end), known] for end, known in zip((x, paths.final), exact, strict=True)])


def _escapes(config: Config, key) -> Float[np.ndarray, " 2"]:
    loss = FiniteSum(_wells, 0.5 * _curvatures)
    start, runs = np.full(1, 1 + _close), config.breakdown_runs
    x = optimizers.run(optimizers.SGD(_rate, 1), loss, start, steps=_escape_steps, runs=runs, key=key).final
    model, dt = SGD(loss, Minibatch(loss, 1), _rate), _rate / _substeps
    y = sde.simulate(model, sde.EulerMaruyama(), start, _escape_steps * _substeps * dt, dt, key, runs).final
    # Of the two minima, the nearer one.
    return np.array([np.mean(np.abs(end[:, 0]) < 0.5) for end in (x, y)])
