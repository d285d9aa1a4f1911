"""What the command line computed, with the arguments by which it did: that can be computed again and compared."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx

from solvers.diagnosis import Diagnosis
from solvers.provenance import Provenance
from solvers.result import AbstractResult
from solvers.saving import differences

from .invariant import InvariantComparison
from .saving import load


class Comparisons(AbstractResult):
    """What `sgdsde compare` found: the arguments of the command by name, and one comparison for each noise."""

    arguments: dict[str, Any]
    results: dict[str, InvariantComparison]
    provenance: Provenance | None = eqx.field(static=True, default=None)

    def diagnose(self) -> Diagnosis:
        """The findings about each comparison."""
        return Diagnosis(
            tuple(
                dataclasses.replace(f, about=f"{name}: {f.about}")
                for name, result in self.results.items()
                for f in result.diagnose().findings
            )
        )

    def plot(self, axes: Any = None) -> Any:
        """The figure of the first comparison; the others have their own `plot`. Returns the axes."""
        return next(iter(self.results.values())).plot(axes)

    def __str__(self) -> str:
        given = ", ".join(f"{name} {value}" for name, value in self.arguments.items())
        return "\n\n".join([f"sgdsde compare: {given}", *(f"{name}\n{r}" for name, r in self.results.items())])


def verify(path: str, rerun: Callable[[dict[str, Any]], dict[str, InvariantComparison]], say: Callable) -> bool:
    """Whether the file of a result is whole and, where the command line can compute it again, right.

    `rerun` computes comparisons from the arguments of the command; `say` gets what was found, line by line. Raises
    `ValueError` for a file that is damaged or not of a result.
    """
    saved = load(path)
    say(f"checksums: ok, {path} holds a {type(saved).__name__}")
    made = {r.provenance for r in saved.results.values()} if isinstance(saved, Comparisons) else {saved.provenance}
    for record in made - {None}:
        say(f"made by: {record}")
    if not isinstance(saved, Comparisons):
        say("not computed again: only what `sgdsde compare --save` wrote says how. Print the result for the rest.")
        return True
    if ":" in saved.arguments["loss"]:
        say("not computed again: the loss is a function of a module, whose code a file must not start.")
        return True
    again = rerun(saved.arguments)
    return _judged(saved.results, again, say)


def _judged(saved: dict[str, InvariantComparison], again: dict[str, InvariantComparison], say: Callable) -> bool:
    different = differences(saved, again)
    if not different:
        say("computed again: ok, every number is the same to the last bit")
        return True
    say(f"computed again: {len(different)} parts differ: {', '.join(different[:_most_named])}")
    if [r.provenance for r in saved.values()] == [r.provenance for r in again.values()]:
        say("FAILED: versions, platform, key and process are the same, so that every bit should be.")
        return False
    say("versions, platform or process are not those of the file: bits may differ, verdicts should not.")
    same = all(_opinions(saved[name]) == _opinions(again[name]) for name in saved)
    say("verdicts: ok, the same" if same else "FAILED: verdicts differ.")
    return same


# Parts that are named where two results differ.
_most_named = 5


def _opinions(result: InvariantComparison) -> list[tuple[str, bool]]:
    """Which laws all decisive routes agree with; numbers in the verdict's sentences vary with rounding."""
    return [(law, result.agrees_with(law)) for law in sorted({r.law for r in result.rows})]
