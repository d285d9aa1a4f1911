"""Axes to draw on. No plotting library is imported here: axes come from the caller, or from who supplies new ones.

A result's `plot(ax)` calls methods of `ax` alone, those of matplotlib's axes. Where `ax` is left out it asks for new
ones, which `sgdsde.plots` supplies from matplotlib once anything of `sgdsde` is used.
"""

from collections.abc import Callable
from typing import Any

_suppliers: list[Callable[[], Any]] = []


def supply(new_axes: Callable[[], Any]) -> None:
    """Lets `new_axes()` make the axes of plots that are given none."""
    _suppliers[:] = [new_axes]


def axes_or_new(ax: Any) -> Any:
    """`ax`, or new axes; `ValueError` if there is nobody to make some."""
    if ax is not None:
        return ax
    if not _suppliers:
        raise ValueError(
            "`ax` must be matplotlib axes to draw on, as from `matplotlib.pyplot.subplots()[1]`: `solvers` alone makes "
            "none. After `import sgdsde.plots` it may be left out."
        )
    return _suppliers[0]()
