r"""How far a law is from the stationary one as time goes on: entropy, χ² and the weighted L² distance, beside the gap.

With π the stationary law and u = ρ/π the three distances are

    H = ∫ u log u π dx,     χ² = ∫ (u - 1)² π dx,     ‖u - 1‖ = sqrt(χ²) in L²(π),     H <= log(1 + χ²).

For dX = -∇f dt + sqrt(2T) dB the free energy F(ρ) = ∫ f ρ + T ∫ ρ log ρ exceeds that of π by T H. All three fall for
any process (data processing). With detailed balance ‖u - 1‖ falls by e^(-λt) or faster, λ the spectral gap, and that
from any start of finite χ². H falls like χ² in the end, at twice that rate; without detailed balance a rate can be
below the gap for a while.
"""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ..axes import axes_or_new
from ..diagnosis import Diagnosis, accuracy, judged, unknown
from ..drawing import guide, solved
from ..provenance import Provenance, made_by, recorded
from ..result import AbstractResult
from .assembly import check_generator
from .current import check_grid
from .evolution import Evolution
from .spectrum import spectrum
from .stationary import closed_law

# Masses below this fraction of the largest are rounding. Divided by a law that is smaller yet they would decide χ².
_rounding = 1e-14


# A rate of decay this near to the gap is that of late times.
_late = 0.05


class Relaxation(AbstractResult):
    """Distances from the stationary law at the times `ts`, and how fast they shrink.

    `relative_entropy` is H, `chi2` is χ² and `l2` its root; see the module. `decay_rates[i]` is the mean rate of decay
    of `l2` from `ts[i]` to `ts[i + 1]`, to be held against `gap`, the spectral gap with its error `gap_error`.
    """

    ts: Float[np.ndarray, " s"]
    relative_entropy: Float[np.ndarray, " s"]
    chi2: Float[np.ndarray, " s"]
    decay_rates: Float[np.ndarray, " s-1"]
    gap: float
    gap_error: float
    provenance: Provenance | None = eqx.field(static=True, default=None)

    @property
    def l2(self) -> Float[np.ndarray, " s"]:
        """The distance ‖ρ/π - 1‖ in L²(π)."""
        return np.sqrt(self.chi2)

    def diagnose(self) -> Diagnosis:
        """Whether χ² falls, as it must; whether the gap is known to 1 %, and was reached by the rate of decay."""
        rise = float(np.max(np.diff(self.chi2), initial=-np.inf) / self.chi2[0])
        found = [
            judged("decay", rise < _rounding, "χ² falls" if rise < _rounding else "χ² rises", "Use a smaller `rtol`"),
            accuracy("gap", self.gap, self.gap_error, "Use cells half as wide"),
        ]
        if len(self.decay_rates):
            last = float(self.decay_rates[-1])
            text = f"the last decay rate is {last / self.gap:.3g} times the gap"
            found.append(judged("late times", abs(last / self.gap - 1) < _late, text, "Use later `ts`"))
        else:
            found.append(unknown("late times", "a rate of decay takes two `ts`"))
        return Diagnosis(tuple(found))

    def plot(self, ax: Any = None) -> Any:
        """Draws the distance in L²(π) over time, and the slope of the gap, on `ax` or new axes, which are returned."""
        ax = axes_or_new(ax)
        ax.plot(self.ts, self.l2, color=solved, marker="s", label=r"$\|\rho/\pi - 1\|$")
        bound = self.l2[-1] * np.exp(-self.gap * (self.ts - self.ts[-1]))
        ax.plot(self.ts, bound, color=guide, linestyle="--", label="rate of the gap")
        ax.set(xlabel="$t$", ylabel="distance", yscale="log")
        ax.legend(frameon=False)
        return ax

    def __str__(self) -> str:
        last = f", decay rate at the end {self.decay_rates[-1]:.6g}" if len(self.decay_rates) else ""
        return (
            f"Relaxation from t={self.ts[0]:.6g} to {self.ts[-1]:.6g}: relative entropy {self.relative_entropy[0]:.3g} "
            f"to {self.relative_entropy[-1]:.3g}, χ² {self.chi2[0]:.3g} to {self.chi2[-1]:.3g}{last}, "
            f"gap {self.gap:.6g} ± {self.gap_error:.1g}{made_by(self)}"
        )


@recorded("generator")
def relaxation(generator: Any, evolution: Any) -> Relaxation:
    """The distances of the laws of `evolution` from the stationary law of `generator`, by which they were computed.

    Cells whose mass is below 1e-14 of the largest, where rounding decides, are left out: a start whose tails are much
    wider than those of the stationary law has a larger χ² than is returned. Distances below the `rtol` of the
    evolution mean nothing.

    Raises `ValueError` for absorbing boundaries, and for laws on another grid.
    """
    check_generator(generator)
    if not isinstance(evolution, Evolution):
        raise TypeError(f"`evolution` must come from `fokker_planck.evolve`, got {type(evolution).__name__}.")
    if not generator.conserving:
        raise ValueError(
            "A process that is absorbed has no stationary law to relax to, but `generator` has boundary "
            f"{generator.boundary!r}. Compare with `quasi_stationary`, or assemble with boundary='no-flux'."
        )
    check_grid("evolution", evolution.densities[0], generator)
    law = closed_law(generator)
    entropy, chi2 = np.array([_distances(p.mass, law) for p in evolution.densities]).T
    slowest = spectrum(generator, 2)
    return Relaxation(
        evolution.ts, entropy, chi2, _decay_rates(evolution.ts, chi2), slowest.gap, float(slowest.error[1])
    )


def _distances(mass: Float[np.ndarray, "..."], law: Float[np.ndarray, "..."]) -> tuple[float, float]:
    mass = mass / mass.sum()
    kept = (law > 0) & (np.maximum(mass, law) > _rounding * mass.max())
    mass, law = mass[kept], law[kept]
    excess = (mass - law) / law
    # u log u - (u - 1), whose terms are not negative: near equilibrium u log u alone would cancel.
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(mass > 0, (1 + excess) * np.log1p(excess) - excess, 1.0)
    return float(law @ terms), float(law @ excess**2)


def _decay_rates(ts: Float[np.ndarray, " s"], chi2: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s-1"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -0.5 * np.diff(np.log(chi2)) / np.diff(ts)
