"""The weak error between an optimiser and its process."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .style import bare, on_axes, series, slope, ticks_at

if TYPE_CHECKING:
    from ..weak_error import Validity


def weak_errors(result: "Validity", axes: Any = None) -> np.ndarray:
    """|E φ(optimiser) - E φ(process)| against the learning rate; and for SVAG against its amplification."""
    with on_axes(axes, 1 if result.ladder is None else 2) as panels:
        ax = panels[0]
        for k, (name, (colour, marker)) in enumerate(zip(result.names, series, strict=False)):
            label = f"{name}, order {result.orders[k]:.2f}" if np.isfinite(result.intervals[k]).all() else name
            _errors(ax, result.learning_rates, result.errors[k], result.sem[k], colour, marker, label)
        known = np.abs(result.errors[np.isfinite(result.errors)])
        for power in (1.0, 2.0) if np.any(known > 0) else ():
            slope(ax, result.learning_rates, 0.6 * known[known > 0].min(), power)
        ax.set(xlabel=r"learning rate $\eta$", ylabel="weak error", title=f"$t = {result.t1:g}$")
        if result.ladder is not None:
            for k, (name, (colour, marker)) in enumerate(zip(result.names, series, strict=False)):
                ladder = result.ladder
                _errors(panels[1], np.array(ladder.levels), ladder.errors[k], ladder.sem[k], colour, marker, name)
            title = rf"$\eta = {result.ladder.learning_rate:g}$"
            panels[1].set(xlabel="amplification of SVAG", ylabel="weak error", title=title)
        at = [result.learning_rates] if result.ladder is None else [result.learning_rates, result.ladder.levels]
        for ax, values in zip(panels, at, strict=True):
            ax.set(xscale="log", yscale="log")
            ticks_at(ax, values)
            ax.legend()
            bare(ax)
    return panels


def _errors(ax: Any, x: np.ndarray, errors: np.ndarray, sem: np.ndarray, colour: str, marker: str, label: str) -> None:
    ax.errorbar(x, np.abs(errors), 1.96 * sem, color=colour, marker=marker, label=label)
