"""Which trace sets the loss at which SGD rests: that of C for small η, and for all η a discrete Lyapunov equation.

Logistic regression with weight decay, which has one minimum, on labels that no linear classifier explains, so that the
gradient covariance C and the Hessian H differ there. Three predictions of E f - min f: η tr C/(4B) (Wang, for η → 0);
tr(HP)/2 with HP + PH - ηHPH = ηC/B (Liu, Ziyin and Ueda); and η tr H/(4B) (Jastrzębski et al., for C = H).
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from solvers import sde

from .. import datasets, optimizers, theory
from ..losses import FiniteSum
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Batch sizes, learning rates in units of 1/λ_max(H), and runs of each; examples, and the weight decay."""

    batches: tuple[int, ...] = (16, 64)
    rates: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0, 1.5)
    runs: int = 1000
    examples: int = 400
    weight_decay: float = 0.1

    @staticmethod
    def fast() -> "Config":
        """One batch size, a small and the largest rate, and fewer runs."""
        return Config(batches=(32,), rates=(0.2, 1.5), runs=600)


class Result(eqx.Module):
    """E f - min f in the stationary state, over batch sizes and learning rates.

    `measured` with its standard error `sem`, and the predictions `predicted["Lyapunov" | "tr C" | "tr H"]`.
    `learning_rates` are η; `traces` are those of C and H, and `largest` is λ_max(H).
    """

    config: Config = eqx.field(static=True)
    learning_rates: Float[np.ndarray, " rates"]
    measured: Float[np.ndarray, "batches rates"]
    sem: Float[np.ndarray, "batches rates"]
    predicted: dict[str, Float[np.ndarray, "batches rates"]]
    traces: dict[str, float]
    largest: float

    @property
    def claims(self) -> list[Claim]:
        """The Lyapunov equation holds everywhere, tr C for small learning rates only, and tr H nowhere."""
        found = []
        for b, batch in enumerate(self.config.batches):
            for r, rate in enumerate(self.config.rates):
                at = f"B = {batch}, η λ_max = {rate:g}"
                ratio = {name: float(self.measured[b, r] / p[b, r]) for name, p in self.predicted.items()}
                relative = float(self.sem[b, r] / self.measured[b, r])
                # What all three leave out: that C grows with the distance from the minimum.
                left_out = float(self.learning_rates[r] * self.traces["H"] / (2 * batch))
                tolerance = 4 * relative + left_out
                found.append(Claim(f"{at}: measured / Lyapunov", ratio["Lyapunov"], 1.0, tolerance))
                found.append(Claim(f"{at}: measured / (η tr H/4B)", ratio["tr H"], 1 - tolerance, 0.0, "<"))
                text = f"{at}: measured / (η tr C/4B)"
                if rate == min(self.config.rates):
                    # No direction rests higher than 1/(1 - ηλ_max/2) times what the limit says.
                    found.append(Claim(text, ratio["tr C"], 1.0, 1 / (1 - rate / 2) - 1 + tolerance))
                if rate == max(self.config.rates):
                    found.append(Claim(f"{text} is off", ratio["tr C"], 1 + tolerance, 0.0, ">"))
        return found

    def table(self) -> dict[str, np.ndarray]:
        """One row for each batch size and learning rate, as columns of equal length."""
        shape = self.measured.shape
        batches = np.broadcast_to(np.array(self.config.batches)[:, None], shape)
        rates = np.broadcast_to(self.learning_rates, shape)
        columns = {"batch_size": batches, "learning_rate": rates, "measured": self.measured, "sem": self.sem}
        return {name: np.ravel(column) for name, column in (columns | self.predicted).items()}

    def plot(self, axes=None) -> np.ndarray:
        """Measured over predicted, against η λ_max."""
        from ..plots import experiments

        return experiments.stationary_loss(self, axes)

    def __str__(self) -> str:
        columns = self.table()
        rows = [list(map(float, row)) for row in zip(*columns.values(), strict=True)]
        return "\n".join([table(list(columns), rows), *map(str, self.claims)])


# Separation of the clouds of each class. Weight decay keeps the classifier unsure of what is easy to tell: C < H.
_separation, _features = 4.0, 8

# Mean relaxation times of the slowest direction that are left out, and that are averaged over.
_burn_in, _averaged = 12, 12

# Samples of a run; those closer than a relaxation time say little more.
_samples = 12

_newton_steps = 20


def run(config: Config | None = None, key=0) -> Result:
    """Runs from the minimum, until they are stationary."""
    config = Config() if config is None else config
    loss = logistic(config)
    x, H, C = minimum(loss, jnp.zeros(_features))
    largest = float(np.linalg.eigvalsh(H)[-1])
    eta = np.array(config.rates) / largest
    excess = [[stationary_excess(loss, x, H, e, batch, config.runs, key) for e in eta] for batch in config.batches]
    measured, sem = np.moveaxis(np.array(excess), -1, 0)
    predicted = {name: np.array([[f(e, b) for e in eta] for b in config.batches]) for name, f in _laws(H, C).items()}
    traces = {"C": float(np.trace(C)), "H": float(np.trace(H))}
    return Result(config, eta, measured, sem, predicted, traces, largest)


def logistic(config: Config) -> FiniteSum:
    """Logistic regression with weight decay, on two classes of two clouds each."""
    data = datasets.clusters(
        0, train=config.examples, held_out=1, features=_features, classes=2, separation=_separation, flipped=0.0
    )
    inputs, labels = (jnp.asarray(a, jnp.result_type(float)) for a in data.train)
    decay = config.weight_decay

    def one(x, example):
        z = example[0] @ x
        return jax.nn.softplus(z) - example[1] * z + 0.5 * decay * (x @ x)

    return FiniteSum(one, (inputs, labels))


def minimum(loss: FiniteSum, x: Float[Array, " d"]) -> tuple[Array, np.ndarray, np.ndarray]:
    """The minimum of a convex loss by Newton's method, with H and C there."""

    @jax.jit
    def derivatives(x):
        return jax.jacfwd(loss.examples)(x, jnp.arange(loss.count)), jax.jacfwd(jax.grad(loss))(x)

    gradients, H = map(np.asarray, derivatives(x))
    for _ in range(_newton_steps):
        x = x - jnp.asarray(np.linalg.solve(H, gradients.mean(axis=0)), x.dtype)
        gradients, H = map(np.asarray, derivatives(x))
    return x, H, np.cov(gradients.T, ddof=0)


def stationary_excess(loss, x, H, learning_rate: float, batch: int, runs: int, key) -> tuple[float, float]:
    """E f - f(x) of SGD that has forgotten its start, the minimum x, with its standard error over runs."""
    relaxation = 1 / (learning_rate * float(np.linalg.eigvalsh(H)[0]))
    burn_in, averaged = round(_burn_in * relaxation), round(_averaged * relaxation)
    out = optimizers.run(
        optimizers.SGD(learning_rate, batch),
        loss,
        x,
        steps=burn_in + averaged,
        runs=runs,
        key=key,
        observe={"excess": sde.Moments(_Excess(loss, loss(x)))},
        burn_in=burn_in,
        every=max(1, averaged // _samples),
        progress=False,
    )
    return float(out["excess"].mean), float(out["excess"].sem)


class _Excess(eqx.Module):
    # A pytree, so that learning rates share a program.
    loss: Any
    least: Float[Array, ""]

    def __call__(self, t, x):
        return self.loss(x) - self.least


def _laws(H, C):
    return {
        "Lyapunov": lambda e, b: 0.5 * np.trace(H @ theory.stationary_covariance(H, C, e, b, finite_rate=True)),
        "tr C": lambda e, b: theory.excess_loss(C, e, b),
        "tr H": lambda e, b: theory.excess_loss(H, e, b),
    }
