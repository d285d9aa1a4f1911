"""The law of an optimiser beside those of processes that stand for it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .style import bare, blue, grey, on_axes, series, vermilion

if TYPE_CHECKING:
    from ..law_comparison import LawComparison


def laws(result: "LawComparison", axes: Any = None) -> np.ndarray:
    """Distribution functions of the first functional, and the distance of each law, filled where it differs."""
    with on_axes(axes, 2) as panels:
        left, right = panels
        first = result.names[0]
        for route in result.routes:
            colour, width = (vermilion, 1.0) if route.startswith("process") else (grey, 0.8)
            _steps(left, result.samples[route][first][:, 0], color=colour, lw=width, zorder=2)
        _steps(
            left, result.samples[result.optimizer][first][:, 0], color=blue, lw=1.8, label=result.optimizer, zorder=3
        )
        left.plot([], [], color=vermilion, label="process")
        left.plot([], [], color=grey, label="others")
        left.set(
            xlabel=first,
            ylabel="part of the runs below",
            title=rf"$t = {result.t1:g}$, $\eta = {result.learning_rate:g}$",
        )
        left.legend()
        places = np.arange(len(result.routes))[::-1].astype(float)
        for i, (name, (colour, marker)) in enumerate(zip(result.names, series, strict=False)):
            height = places - 0.2 * (i - (len(result.names) - 1) / 2)
            right.errorbar(
                result.distance[i], height, xerr=1.96 * result.sem[i], color=colour, marker="", ls="", lw=0.9
            )
            for differs in (True, False):
                shown = result.differs[i] == differs
                face = colour if differs else "white"
                label = name if differs else None
                right.plot(
                    result.distance[i][shown], height[shown], marker=marker, color=colour, mfc=face, ls="", label=label
                )
        right.axvline(0, color=grey, lw=0.6, zorder=1)
        right.set_yticks(places, result.routes)
        right.set(xlabel="energy distance, of 1", title="filled: told apart", ylim=(-0.7, len(places) - 0.3))
        right.legend()
        for ax in panels:
            bare(ax)
    return panels


def _steps(ax: Any, values: np.ndarray, **how: Any) -> None:
    ordered = np.sort(values[np.isfinite(values)])
    ax.step(ordered, (1 + np.arange(len(ordered))) / len(values), where="post", **how)
