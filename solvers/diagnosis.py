"""Whether a result can be trusted: one line for each thing that may be wrong, "ok" or what to change."""

import equinox as eqx
import numpy as np

# Masses that are lost without a remark, and how far a total may be from 1 by rounding.
_lost, _rounding = 1e-3, 1e-6

# Errors above this part of a value are worth a remark.
_accurate = 1e-2


class Finding(eqx.Module):
    """One line: what it is `about`; whether that is `good`, None where that is not known; why, or what to change."""

    about: str
    good: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "CHANGE", None: "not judged"}[self.good]
        return f"{self.about}: {mark}: {self.text}"


class Diagnosis(eqx.Module):
    """The findings about a result, in order. `ok` is True if nothing is to be changed."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no finding asks for a change."""
        return all(f.good is not False for f in self.findings)

    def __getitem__(self, about: str) -> Finding:
        found = [f for f in self.findings if f.about == about]
        if not found:
            raise KeyError(f"nothing was found about {about!r}; there is {[f.about for f in self.findings]}")
        return found[0]

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


def judged(about: str, good: bool | np.bool_, text: str, change: str) -> Finding:
    """A finding that says `text`, and what to `change` if that is not good."""
    return Finding(about, bool(good), text if good else f"{text}. {change}")


def unknown(about: str, why: str) -> Finding:
    """A finding that could not be made."""
    return Finding(about, None, why)


def finite(name: str, *values: np.ndarray) -> Finding:
    """Whether all numbers are finite."""
    bad = int(sum(np.sum(~np.isfinite(v)) for v in values))
    text = f"all {name} are finite" if bad == 0 else f"{bad} of the {name} are not finite"
    return judged("finite", bad == 0, text, "Look at where they are: the grid or the step does not resolve the process")


def accuracy(about: str, value: float, error: float, change: str) -> Finding:
    """Whether the estimated error of a number is below 1 % of it."""
    if np.isnan(error):
        return unknown(about, "no error estimate: use an even number of cells along each axis")
    share = abs(error / value) if value != 0 else (0.0 if error == 0 else np.inf)
    return judged(about, share < _accurate, f"estimated error {error:.2g} of {value:.6g}", change)


def mass_conserved(total_error: float) -> Finding:
    """Whether a total that should be 1 is."""
    text = f"the total deviates by {abs(total_error):.1g}"
    return judged("mass conserved", abs(total_error) < _rounding, text, "Use a smaller `rtol`, and float64")


def not_negative(smallest: float) -> Finding:
    """Whether masses are negative by no more than rounding."""
    text = f"the smallest mass is {smallest:.1g}"
    return judged("negativity", smallest > -_rounding, text, "Use a smaller `rtol`, or cells half as wide")


def mass_lost(about: str, mass: float, where: str) -> Finding:
    """Whether less than 1e-3 of the mass is not where it can be seen."""
    return judged(
        about,
        mass < _lost,
        f"{mass:.2g} of the mass is {where}",
        "Use a grid that reaches farther, as by `Grid.stretched`",
    )
