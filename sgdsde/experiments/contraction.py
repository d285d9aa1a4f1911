"""SGD converges linearly in discrete time when its noise vanishes with the loss, at the rate ρ_η.

E f(θ_t) ≤ ρ_η^t E f(θ_0) with ρ_η = 1 - Λη + (C_L/2)(Λ + σ)η² for Λf ≤ |∇f|², ∇f C_L-Lipschitz and E|g - ∇f|² ≤ σf
(`sgdsde.theory.contraction`). It is attained on f = x²/2; on f = x² + 3 sin²x, which is not convex, it is a bound. The
formula that some slides print is exceeded by the runs.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .. import optimizers, theory
from ..noise import LossProportional
from .claims import Claim, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Learning rates η, the noise σ of E|g - ∇f|² = σf, steps and runs of each."""

    learning_rates: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    noise: float = 1.0
    steps: int = 4
    runs: int = 1_000_000

    @staticmethod
    def fast() -> "Config":
        """Fewer runs."""
        return Config(runs=100_000)


class Result(eqx.Module):
    """E f after each step over E f before, for each η: measured with standard errors, ρ_η, and the printed formula."""

    config: Config = eqx.field(static=True)
    measured: Float[np.ndarray, " rates"]
    sem: Float[np.ndarray, " rates"]
    bound: Float[np.ndarray, " rates"]
    printed: Float[np.ndarray, " rates"]
    rugged: Float[np.ndarray, " rugged"]
    rugged_bound: Float[np.ndarray, " rugged"]

    @property
    def claims(self) -> list[Claim]:
        """ρ_η is attained on a quadratic and holds on the rugged loss; the printed formula is exceeded."""
        found = []
        for eta, m, s, b, p in zip(
            self.config.learning_rates, self.measured, self.sem, self.bound, self.printed, strict=True
        ):
            found.append(Claim(f"η = {eta}: the mean factor per step is ρ", m, b, 4 * s))
            found.append(Claim(f"η = {eta}: it exceeds the printed formula", m, p, -4 * s, ">"))
        for eta, m, b in zip(_rugged_rates, self.rugged, self.rugged_bound, strict=True):
            found.append(Claim(f"η = {eta}: on x² + 3 sin²x the factor is below ρ", m, b, 0.0, "<"))
        return found

    def plot(self, axes=None) -> np.ndarray:
        """Factors against η."""
        from ..plots import experiments

        return experiments.contraction(self, axes)

    def __str__(self) -> str:
        rows = zip(self.config.learning_rates, self.measured, self.sem, self.bound, self.printed, strict=True)
        head = ["η", "measured", "standard error", "ρ", "as printed"]
        return "\n".join([table(head, rows), *map(str, self.claims)])


# For x² + 3 sin²x |∇f|²/f is at least 0.3510, at |x| = 2.2, and |f''| at most 8. Then ρ < 1 for η < 0.065.
_rugged_rates = (0.02, 0.04)
_rugged_pl, _rugged_smoothness = 0.35, 8.0


def run(config: Config | None = None, key=0) -> Result:
    """Runs of SGD with normal gradient noise of variance σf, from x = 1 and x = 2."""
    config = Config() if config is None else config
    measured, sem = zip(*[_factor(_bowl, 1.0, eta, config, key) for eta in config.learning_rates], strict=True)
    rugged = [_factor(_rugged, 2.0, eta, config, key)[0] for eta in _rugged_rates]
    # f = x²/2 has Λ = 2 and C_L = 1.
    constants = 2.0, 1.0, config.noise
    return Result(
        config,
        np.array(measured),
        np.array(sem),
        np.array([theory.contraction_rate(eta, *constants) for eta in config.learning_rates]),
        np.array([theory.contraction.contraction_rate_as_printed(eta, *constants) for eta in config.learning_rates]),
        np.array(rugged),
        np.array([theory.contraction_rate(e, _rugged_pl, _rugged_smoothness, config.noise) for e in _rugged_rates]),
    )


def _bowl(x):
    return 0.5 * x @ x


def _rugged(x):
    return jnp.sum(x**2 + 3 * jnp.sin(x) ** 2)


def _factor(loss, start: float, eta: float, config: Config, key) -> tuple[float, float]:
    # (E f_T / f_0)^(1/T), with its standard error. A noise model of strength s has variance 2 s f.
    out = optimizers.run(
        optimizers.SGD(eta),
        loss,
        jnp.full(1, start),
        steps=config.steps,
        runs=config.runs,
        key=key,
        noise=LossProportional(config.noise / 2),
    )
    values = np.asarray(jax.jit(jax.vmap(loss))(jnp.asarray(out.final)))
    mean, sem = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    factor = (mean / float(loss(jnp.full(1, start)))) ** (1 / config.steps)
    return float(factor), float(factor * sem / mean / config.steps)
