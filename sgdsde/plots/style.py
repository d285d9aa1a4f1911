"""What all figures share: colours with fixed meanings, small type, and guides for slopes."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind can tell apart.
blue, vermilion, green, purple, sky, grey = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#888888"
orange = "#E69F00"

# For series without a meaning of their own, each with a marker as a second channel.
series = [(blue, "o"), (vermilion, "s"), (green, "^"), (purple, "D"), (orange, "v"), (sky, "P")]

_style: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "mathtext.fontset": "cm",
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
}

# The width and height of one panel, in inches.
panel_size = (3.3, 3.0)

# So many labels of three digits fit under a panel.
_most_ticks = 6


@contextlib.contextmanager
def on_axes(axes: Any, count: int) -> "Iterator[np.ndarray]":
    """The `count` axes to draw on, as an array: those given, or new ones in a row; settings hold inside only."""
    import matplotlib.pyplot as plt

    with plt.rc_context(_style):
        if axes is None:
            size = (panel_size[0] * count, panel_size[1])
            axes = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)[1]
        panels = np.asarray(axes).ravel()
        if len(panels) != count:
            raise ValueError(f"`axes` must be {count} axes, got {len(panels)}.")
        yield panels


def new_axes() -> "Axes":
    """One panel of a new figure; settings hold for it alone."""
    with on_axes(None, 1) as panels:
        return panels[0]


def bare(ax: "Axes") -> None:
    """Without the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)


def ticks_at(ax: "Axes", x: Any) -> None:
    """Ticks of a logarithmic axis at the values `x` alone: its own labels run into each other over a decade or less."""
    shown = np.sort(np.asarray(x))[:: -(-len(x) // _most_ticks)]
    ax.set_xticks(shown, [f"{value:.3g}" for value in shown])
    ax.set_xticks([], minor=True)


def few_decades(ax: "Axes") -> None:
    """Ticks of a logarithmic ordinate at 1, 2 and 5 of every decade, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_yticks([], minor=True)


def slope(ax: "Axes", x: Any, y0: float, power: float, label: str | None = None, above: bool = True) -> None:
    """A dashed guide y = y0 (x / x[0])^power over the ends of `x`, named at its far end, above it or below it.

    For log-log axes.
    """
    ends = np.array([np.min(x), np.max(x)], dtype=float)
    y = y0 * (ends / ends[0]) ** power
    ax.plot(ends, y, color=grey, linestyle="--", linewidth=0.8, zorder=1)
    name = f"slope {power:g}" if label is None else label
    # Below, clear of the line, which rises to its end.
    shift, align = ((0, 0), "bottom") if above else ((0, -14), "top")
    ax.annotate(name, (ends[1], y[1]), shift, textcoords="offset points", color=grey, fontsize=7, ha="right", va=align)
