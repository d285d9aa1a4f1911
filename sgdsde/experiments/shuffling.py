"""Random reshuffling regularises and calms: its mean feels the spread of the minibatches, its iterate hardly does.

M minibatches with L_j = h_j (w - a_j)²/2, one epoch after another. The mean of reshuffled SGD follows the flow of
L + (η/4M) Σ|∇L_j|² with an error O(η³) an epoch; with independent draws it follows L + (η/4)|∇L|², without the variance
of the minibatch gradients (`sgdsde.theory.shuffling`). At the ends of epochs the variance of the iterate is smaller by
a factor of order (ηh)²M²/12.
"""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import optimizers
from ..losses import FiniteSum
from ..theory import shuffling as theory
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Learning rates of the exact study; runs, and the epochs after which their variance is taken."""

    learning_rates: tuple[float, ...] = (0.04, 0.02, 0.01, 0.005)
    runs: int = 400_000
    epochs: int = 60

    @staticmethod
    def fast() -> "Config":
        """Fewer runs."""
        return Config(runs=40_000)


class Result(eqx.Module):
    """Axis 0 is reshuffling and independent draws.

    `errors`: distance of the exact mean after one epoch from the flow with and without the variance term (axis 1), for
    each learning rate. `means` and `variances`: from runs, with standard errors, beside the exact values.
    """

    config: Config = eqx.field(static=True)
    errors: Float[np.ndarray, "2 2 rates"]
    means: Float[np.ndarray, "2 3"]
    variances: Float[np.ndarray, "2 3"]

    @property
    def orders(self) -> Float[np.ndarray, "2 2"]:
        """The order of `errors` in η, between the two smallest learning rates."""
        rates = np.array(self.config.learning_rates)
        return np.log(self.errors[..., -2] / self.errors[..., -1]) / np.log(rates[-2] / rates[-1])

    @property
    def claims(self) -> list[Claim]:
        """The right flow is followed to third order, the other to second; runs have the exact means and variances."""
        found = []
        for k, sampling in enumerate(_samplings):
            found.append(Claim(f"{sampling}: order of the error of its own flow", self.orders[k, k], 3.0, 0.25))
            found.append(Claim(f"{sampling}: order of the error of the other flow", self.orders[k, 1 - k], 2.0, 0.25))
            for what, values in (
                ("mean after an epoch", self.means),
                ("variance at the ends of epochs", self.variances),
            ):
                measured, sem, exact = values[k]
                found.append(Claim(f"{sampling}: {what}", measured, exact, 4 * sem))
        return found

    def plot(self, axes=None) -> np.ndarray:
        """Errors of the flows against η, with slopes."""
        from ..plots import experiments

        return experiments.shuffling(self, axes)

    def __str__(self) -> str:
        rows = []
        for k, sampling in enumerate(_samplings):
            rows.append([sampling, "order, with variance term", self.orders[k, 0], "-", "-"])
            rows.append([sampling, "order, without", self.orders[k, 1], "-", "-"])
            rows.append([sampling, "mean", *self.means[k]])
            rows.append([sampling, "variance", *self.variances[k]])
        head = ["sampling", "what", "value", "standard error", "exact"]
        return "\n".join([table(head, rows), *map(str, self.claims)])


_samplings = ("reshuffled", "independent")
_names = {"reshuffled": "reshuffling", "independent": "with-replacement"}

# Curvatures, centres and start of the study of the mean; batches, curvature and noise of that of the variance.
_h, _a, _start = np.array([0.2, 0.8, 1.5, 3.5]), np.array([2.0, -1.0, 0.5, 1.0]), 3.0
_batches, _curvature, _rate = 10, 1.0, 0.1


def run(config: Config | None = None, key=0) -> Result:
    """Exact means over all orders, and runs of both samplings."""
    config = Config() if config is None else config
    exact_means = (theory.reshuffled_mean, theory.independent_mean)
    flows = (theory.reshuffled_flow, theory.independent_flow)
    errors = [
        [
            [abs(mean(_h, _a, _start, eta) - flow(_h, _a, _start, eta)) for eta in config.learning_rates]
            for flow in flows
        ]
        for mean in exact_means
    ]
    means = [_mean(name, exact, config, key) for name, exact in zip(_samplings, exact_means, strict=True)]
    exact_variances = (theory.reshuffled_variance, theory.independent_variance)
    variances = [_variance(name, exact, config, key) for name, exact in zip(_samplings, exact_variances, strict=True)]
    return Result(config, np.array(errors), np.array(means), np.array(variances))


def _mean(sampling: str, exact, config: Config, key) -> tuple[float, float, float]:
    eta = 10 * config.learning_rates[0]
    loss = FiniteSum(lambda w, batch: jnp.sum(0.5 * batch[0] * (w - batch[1]) ** 2), np.stack([_h, _a], axis=1))
    method = optimizers.SGD(eta, 1, sampling=_names[sampling])
    w = optimizers.run(method, loss, jnp.full(1, _start), steps=len(_h), runs=config.runs, key=key).final
    return float(w.mean()), float(w.std(ddof=1) / np.sqrt(w.size)), exact(_h, _a, _start, eta)


def _variance(sampling: str, exact, config: Config, key) -> tuple[float, float, float]:
    b = np.arange(_batches) - 0.5 * (_batches - 1)
    loss = FiniteSum(lambda w, shift: jnp.sum(0.5 * _curvature * w**2 - shift * w), b)
    method = optimizers.SGD(_rate, 1, sampling=_names[sampling])
    steps = _batches * config.epochs
    w = optimizers.run(method, loss, jnp.zeros(1), steps=steps, runs=config.runs, key=key).final[:, 0]
    squares = (w - w.mean()) ** 2
    known = (_curvature, float(np.mean(b**2)), _rate, *([_batches] if sampling == "reshuffled" else []))
    return float(squares.mean()), float(squares.std(ddof=1) / np.sqrt(w.size)), exact(*known)
