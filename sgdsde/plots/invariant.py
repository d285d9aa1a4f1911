"""The figures of `compare_invariant`: densities, tails and residuals."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from solvers import Density, Grid, NotSaved
from solvers.grid import evaluate

from .style import bare, blue, green, grey, on_axes, purple, sky, vermilion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..invariant import InvariantComparison

# Bins of the drawn histogram, over all but this mass on either side.
_drawn_bins, _drawn_tail = 60, 2e-3

# A particle tail is drawn while so many standard errors fit into it, and the axes show tails down to this mass.
_least_significance, _least_tail = 2.0, 1e-8

# Standard errors shown in the residuals.
_residual_range = 6.0


def invariant_densities(result: "InvariantComparison", axes: Any = None) -> "np.ndarray":
    """Densities, tails on log-log axes and residuals of an `InvariantComparison`, in three axes, of the first
    coordinate; in two dimensions there is a fourth one before them, with the density in the plane.

    Returns the axes, an array of three or four.
    """
    with on_axes(axes, 2 + result.grid.ndim) as panels:
        if result.grid.ndim == 2:
            _plane(panels[0], result)
        _densities(panels[-3], result)
        _tails(panels[-2], result)
        _residuals(panels[-1], result)
    return panels


def save_comparisons(results: "dict[str, InvariantComparison]", path: str) -> None:
    """Writes one figure with a row of `invariant_densities` for each result, named by its key, to a file."""
    from matplotlib.figure import Figure

    columns = max(2 + r.grid.ndim for r in results.values())
    size = (3.3 * columns, 3.0 * len(results))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    for (name, result), row in zip(results.items(), figure.subplots(len(results), columns, squeeze=False), strict=True):
        panels = invariant_densities(result, row)
        panels[0].title.set_text(f"{name}: {panels[0].get_title()}")
    figure.savefig(path)


def _laws(result: "InvariantComparison") -> list[tuple[str, dict[str, Any]]]:
    """The closed forms that exist, with how to draw them: the accepted one as dots, the others dashed."""
    drawn = []
    for law, label in (("Gibbs", r"Gibbs $e^{-f/\eta\sigma}$"), ("power law", r"power law $f^{-1-1/\eta\sigma}$")):
        if law in result.laws:
            dots = {"color": "black", "linestyle": (0, (1, 1.5)), "zorder": 5}
            dashes = {"color": purple, "linestyle": "--", "zorder": 3}
            drawn.append((law, {"label": label, **(dots if result.agrees_with(law) else dashes)}))
    return drawn


def _particle_route(result: "InvariantComparison") -> str:
    return next(name for name in result.marginals if "dt=" in name)


def _densities(ax: "Axes", result: "InvariantComparison") -> None:
    route = _particle_route(result)
    particles = result.marginals[route][0]
    edges = _evenly(particles)
    shown = particles.on(Grid([edges]))
    width = np.diff(edges)
    error = 1.96 * _standard_error(shown) / width
    ax.stairs(shown.pdf, edges, fill=True, color=sky, alpha=0.45, label=f"{route}, 95 %")
    middle = 0.5 * (edges[1:] + edges[:-1])
    ax.errorbar(middle, shown.pdf, error, linestyle="", color=blue, elinewidth=1.0)
    fp = result.marginals["Fokker-Planck"][0]
    inside = (fp.grid.centres[0] >= edges[0]) & (fp.grid.centres[0] <= edges[-1])
    ax.plot(fp.grid.centres[0][inside], fp.pdf[inside], color=vermilion, label="Fokker-Planck")
    for law, style in _laws(result):
        ax.plot(fp.grid.centres[0][inside], result.marginals[law][0].pdf[inside], **style)
    # Room for the legend above the curves.
    top = 1.5 * max(np.max(line.get_ydata()) for line in ax.lines)
    x = "$x$" if result.grid.ndim == 1 else "$x_1$"
    ax.set(xlabel=x, ylabel="density", title="invariant density", ylim=(0, top))
    ax.legend(loc="upper left", labelspacing=0.25)
    bare(ax)


def _tails(ax: "Axes", result: "InvariantComparison") -> None:
    route = _particle_route(result)
    fp = result.marginals["Fokker-Planck"][0]
    centre = float(np.interp(0.5, fp.cdf() / fp.mass.sum(), fp.grid.edges[0]))
    quartile = float(np.interp(0.75, fp.cdf() / fp.mass.sum(), fp.grid.edges[0])) - centre
    r = quartile * np.logspace(-1, np.log10(np.max(np.abs(fp.grid.edges[0] - centre)) / quartile), 300)
    particles = result.marginals[route][0]
    tail, sem = _tail(particles, centre, r)
    seen = tail > _least_significance * sem
    band = 1.96 * sem[seen]
    ax.fill_between(r[seen], np.maximum(tail[seen] - band, 1e-300), tail[seen] + band, color=sky, alpha=0.5, lw=0)
    ax.plot(r[seen], tail[seen], color=blue, lw=0.8, label=f"{route}, 95 %")
    ax.plot(r, _tail(fp, centre, r)[0], color=vermilion, label="Fokker-Planck")
    for law, style in _laws(result):
        ax.plot(r, _tail(result.marginals[law][0], centre, r)[0], **style)
    x = "x" if result.grid.ndim == 1 else "x_1"
    away = f"{x}" if abs(centre) < 1e-3 * quartile else f"{x}{-centre:+.2g}"
    shown = [_tail(result.marginals[law][0], centre, r)[0] for law, _ in _laws(result)] + [_tail(fp, centre, r)[0]]
    far = max((r[t > _least_tail][-1] for t in shown if np.any(t > _least_tail)), default=r[-1])
    ax.set(xscale="log", yscale="log", xlim=(r[0], far), ylim=(_least_tail, 2), title="tails")
    ax.set(xlabel="$r$", ylabel=f"$P(|{away}| > r)$")
    bare(ax)


def _residuals(ax: "Axes", result: "InvariantComparison") -> None:
    laws = sorted([law for law, _ in _laws(result)], key=lambda law: not result.agrees_with(law))
    bins = result.bins.axis(0)
    index = np.arange(bins.size)
    ax.axhspan(-2, 2, color=grey, alpha=0.15, lw=0)
    ax.axhline(0, color=grey, lw=0.6)
    routes = [name for name in result.marginals if "dt=" in name]
    for route, colour, marker in zip(routes, (blue, green, purple), ("o", "s", "^"), strict=False):
        particles = result.marginals[route][0].on(bins)
        for law in laws:
            excess = particles.mass - result.marginals[law][0].on(bins).mass
            z = excess / np.maximum(_standard_error(particles), 1e-300)
            good = result.agrees_with(law)
            ax.plot(
                index,
                np.clip(z, -_residual_range, _residual_range),
                linestyle="",
                marker=marker,
                ms=3,
                color=colour if good else "none",
                markeredgecolor=colour,
                markeredgewidth=0.5,
                label=f"{route.split(',')[0]} - {law}",
            )
    levels = [0, bins.size // 4, bins.size // 2, 3 * bins.size // 4, bins.size - 1]
    digits = max(0, 2 - int(np.floor(np.log10(np.ptp(bins.edges[0][1:-1])))))
    ax.set_xticks(levels, [f"{np.round(bins.edges[0][max(i, 1)], digits) + 0.0:g}" for i in levels])
    ax.set(
        xlabel="lower edge of the bin (of equal mass)",
        ylabel="(particles - law) / standard error",
        title=f"residuals, cut at ±{_residual_range:g}",
        ylim=(-1.15 * _residual_range, 2.2 * _residual_range),
    )
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, 1.02), borderpad=0, labelspacing=0.2)
    bare(ax)


def _plane(ax: "Axes", result: "InvariantComparison") -> None:
    p = result.laws["Fokker-Planck"]
    edges = [_evenly(p.marginal(k)) for k in (0, 1)]
    x, y = (np.linspace(e[0], e[-1], 160) for e in edges)
    points = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
    density = np.asarray(p.at(points)).reshape(160, 160)
    image = ax.pcolormesh(x, y, density.T, cmap="cividis", rasterized=True, shading="gouraud")
    if not isinstance(result.model, NotSaved):
        loss = evaluate(result.model.loss, points).reshape(160, 160)
        ax.contour(x, y, loss.T, levels=np.quantile(loss, np.linspace(0.05, 0.8, 7)), colors="white", linewidths=0.4)
    ax.figure.colorbar(image, ax=ax, label="density", shrink=0.85)
    ax.set(xlabel="$x_1$", ylabel="$x_2$", title="Fokker-Planck; loss contours", aspect="equal")


def _evenly(p: Density) -> Float[np.ndarray, " n"]:
    """Edges of the density's grid that are about evenly spaced over its bulk."""
    cdf = p.cdf() / p.mass.sum()
    low, high = np.interp([_drawn_tail, 1 - _drawn_tail], cdf, p.grid.edges[0])
    index = np.searchsorted(p.grid.edges[0], np.linspace(low, high, _drawn_bins + 1)).clip(0, p.grid.edges[0].size - 1)
    return p.grid.edges[0][np.unique(index)]


def _standard_error(p: Density) -> Float[np.ndarray, "..."]:
    return np.zeros(p.grid.shape) if p.standard_error is None else p.standard_error


def _tail(
    p: Density, centre: float, r: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """P(|X - centre| > r), with its standard error; mass outside the grid is beyond every r."""

    def beyond(mass):
        # Summed from the ends inwards, so that small tails keep their digits.
        below = np.concatenate([[0], np.cumsum(mass)])
        above = np.concatenate([np.cumsum(mass[::-1])[::-1], [0]])
        edges = p.grid.edges[0]
        return np.interp(centre - r, edges, below) + np.interp(centre + r, edges, above)

    tail = beyond(p.mass) + p.outside
    if p.replicates is None:
        return tail, np.zeros_like(tail)
    groups = np.stack([beyond(mass) for mass in p.replicates])
    return tail, groups.std(axis=0, ddof=1) / np.sqrt(len(groups))
