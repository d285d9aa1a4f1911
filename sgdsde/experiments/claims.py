"""What an experiment claims, and whether its numbers bear it out."""

import math
from collections.abc import Iterable, Sequence

import equinox as eqx


class Claim(eqx.Module):
    """One statement about a number: `value` lies within `tolerance` of `expected`, or beyond it in a direction.

    `relation` is "=" (|value - expected| ≤ tolerance), "<" (value < expected + tolerance) or ">" (value > expected -
    tolerance). The tolerance is what theory allows: a multiple of a standard error, or a known order of a small
    parameter.
    """

    text: str
    value: float
    expected: float
    tolerance: float
    relation: str = "="

    def __check_init__(self):
        if self.relation not in ("=", "<", ">"):
            raise ValueError(f'`relation` must be "=", "<" or ">", but got {self.relation!r}.')

    @property
    def holds(self) -> bool:
        """Whether the statement is true of the numbers; never of one that is not finite."""
        if not math.isfinite(self.value):
            return False
        beyond = float(self.value - self.expected)
        return {
            "=": abs(beyond) <= float(self.tolerance),
            "<": beyond < float(self.tolerance),
            ">": beyond > -float(self.tolerance),
        }[self.relation]

    def __str__(self) -> str:
        mark = "holds" if self.holds else "FAILS"
        return f"[{mark}] {self.text}: {self.value:.6g} {self.relation} {self.expected:.6g} ± {self.tolerance:.2g}"


def check(claims: Iterable[Claim]) -> None:
    """`AssertionError` that names every claim that does not hold."""
    failed = [str(claim) for claim in claims if not claim.holds]
    if failed:
        raise AssertionError("\n".join(["Not every claim holds:", *failed]))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of words and numbers in aligned columns, numbers to five digits."""
    lines = [list(head), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.5g}" if hasattr(value, "__float__") else str(value)
