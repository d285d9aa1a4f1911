"""How results draw themselves on axes that they are given, in colours that are told apart by everybody and in print.

Blue is what was sampled, vermilion what was solved on a grid, and grey what guides the eye. Nothing but the axes is
touched: no style, no figure.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from .axes import axes_or_new
from .density import Density
from .grid import Grid

sampled, solved, guide = "#0072B2", "#D55E00", "#888888"
_map = "cividis"

# Quantiles of a fan: the median, and bands that hold 50 % and 90 %.
_bands = ((0.05, 0.95, 0.15), (0.25, 0.75, 0.3))

# What is shown of an axis: all but so much of the mass at either end, with a margin of so much of its length, so that a
# box that reaches far into the tails does not hide the law.
_outside, _margin = 5e-4, 0.15

# Bins of a histogram, curves of an evolution and arrows along an axis that can still be told apart.
_bins, _most_curves, _most_arrows = 60, 6, 24


def draw_density(p: Density, ax: Any = None, label: str | None = None) -> Any:
    """The density over one axis with two standard errors, or over a plane; of more axes, the marginal of the first."""
    if p.grid.ndim == 2:
        ax = draw_field(p.grid, p.pdf, "density", ax)
        ax.set(xlim=_window(p.marginal(0)), ylim=_window(p.marginal(1)))
        return ax
    ax, p = axes_or_new(ax), p if p.grid.ndim == 1 else p.marginal(0)
    edges, colour = p.grid.edges[0], solved if p.replicates is None else sampled
    if p.standard_error is not None:
        spread = 2 * p.standard_error / p.grid.volumes
        ax.stairs(p.pdf + spread, edges, baseline=np.maximum(p.pdf - spread, 0), fill=True, color=colour, alpha=0.25)
    ax.stairs(p.pdf, edges, baseline=None, color=colour, label=label)
    ax.set(xlabel="$x_1$", ylabel="density", xlim=_window(p))
    return ax


def _window(*laws: Density) -> tuple[float, float]:
    """Where nearly all of the mass of each law on a line is."""
    edges, ends = laws[0].grid.edges[0], []
    for p in laws:
        below = np.cumsum(p.mass) / np.sum(p.mass)
        first, last = np.searchsorted(below, [_outside, 1 - _outside])
        ends += [edges[first], edges[min(last, len(edges) - 2) + 1]]
    margin = _margin * (max(ends) - min(ends))
    return max(edges[0], min(ends) - margin), min(edges[-1], max(ends) + margin)


def draw_field(grid: Grid, values: Float[np.ndarray, "..."], name: str, ax: Any = None) -> Any:
    """Values in cells: a curve on a line, colours over a plane; on more axes, over the first two, in the middle."""
    ax = axes_or_new(ax)
    if grid.ndim == 1:
        ax.plot(grid.centres[0], values, color=solved)
        ax.set(xlabel="$x_1$", ylabel=name)
        return ax
    plane = values[(..., *(n // 2 for n in grid.shape[2:]))] if grid.ndim > 2 else values
    image = ax.pcolormesh(grid.edges[0], grid.edges[1], plane.T, cmap=_map, rasterized=True)
    ax.figure.colorbar(image, ax=ax, label=name)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    return ax


def draw_densities(ts: Float[np.ndarray, " s"], densities: tuple[Density, ...], ax: Any = None) -> Any:
    """Densities of the first coordinate at some of the times, later ones darker."""
    ax, first = axes_or_new(ax), [p if p.grid.ndim == 1 else p.marginal(0) for p in densities]
    shown = np.unique(np.linspace(0, len(ts) - 1, min(len(ts), _most_curves)).round().astype(int))
    for rank, k in enumerate(shown):
        p = first[k]
        dark = 0.25 + 0.75 * (rank + 1) / len(shown)
        ax.plot(p.grid.centres[0], p.pdf, color=solved, alpha=dark, label=f"$t = {ts[k]:.3g}$")
    ax.set(xlabel="$x_1$", ylabel="density", xlim=_window(*(first[k] for k in shown)))
    ax.legend(frameon=False)
    return ax


def draw_paths(ts: Any, xs: Any, final: Float[np.ndarray, "n d"], ax: Any = None) -> Any:
    """The first component: its median and bands of 50 % and 90 % over time, or without times a histogram at the end."""
    ax = axes_or_new(ax)
    if ts is None or len(ts) < 2:
        last = final[:, 0][np.isfinite(final[:, 0])].astype(np.float64)
        bins, weights = _histogram(last)
        ax.stairs(weights, bins, fill=True, color=sampled, alpha=0.5)
        ax.set(xlabel="$x_1$", ylabel="density at the end")
        return ax
    first = np.asarray(xs[:, :, 0], np.float64)
    for low, high, alpha in _bands:
        ends = np.nanquantile(first, [low, high], axis=1)
        ax.fill_between(ts, *ends, color=sampled, alpha=alpha, linewidth=0, label=f"{100 * (high - low):.0f} %")
    ax.plot(ts, np.nanmedian(first, axis=1), color=sampled, label="median")
    ax.set(xlabel="$t$", ylabel="$x_1$")
    ax.legend(frameon=False)
    return ax


def _histogram(values: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " c"]]:
    # Edges where nearly all values are, and densities of the whole sample.
    low, high = np.quantile(values, [_outside, 1 - _outside])
    margin = max(_margin * (high - low), np.finfo(float).tiny)
    counts, edges = np.histogram(values, bins=_bins, range=(low - margin, high + margin))
    return edges, counts / (max(len(values), 1) * np.diff(edges))


def draw_power(sizes: Any, errors: Any, sem: Any, order: float, ax: Any = None, label: str | None = None) -> Any:
    """Errors with 95 % bars against sizes, both logarithmic, and a guide of the slope `order` through their middle."""
    ax = axes_or_new(ax)
    ax.errorbar(sizes, errors, 1.96 * np.asarray(sem), color=sampled, marker="o", linestyle="", label=label)
    if np.isfinite(order) and np.all(np.asarray(errors) > 0):
        middle = np.exp(np.mean(np.log(errors) - order * np.log(sizes)))
        ends = np.array([np.min(sizes), np.max(sizes)])
        ax.plot(ends, middle * ends**order, color=guide, linestyle="--", label=f"slope {order:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="$dt$", ylabel="error")
    ax.legend(frameon=False)
    return ax


def draw_arrows(grid: Grid, vectors: Float[np.ndarray, "d ..."], name: str, ax: Any = None) -> Any:
    """A vector field: its component on a line, arrows over a plane. `ValueError` for more axes."""
    if grid.ndim == 1:
        return draw_field(grid, vectors[0], name, ax)
    if grid.ndim > 2:
        raise ValueError(f"`plot` draws vectors on one and two axes, but this grid has {grid.ndim}: draw a slice.")
    ax = axes_or_new(ax)
    every = tuple(slice(None, None, -(-n // _most_arrows)) for n in grid.shape)
    x, y = np.meshgrid(grid.centres[0][every[0]], grid.centres[1][every[1]], indexing="ij")
    ax.quiver(x, y, vectors[0][every], vectors[1][every], color=solved)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title=name)
    return ax
