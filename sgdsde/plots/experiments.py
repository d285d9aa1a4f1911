"""One figure for each experiment of `sgdsde.experiments`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .style import bare, blue, few_decades, green, grey, on_axes, purple, series, sky, slope, ticks_at, vermilion

if TYPE_CHECKING:
    from ..experiments.anisotropic_escape import Result as AnisotropicEscape
    from ..experiments.contraction import Result as Contraction
    from ..experiments.convergence import Result as Convergence
    from ..experiments.escape import Result as Escape
    from ..experiments.flat_minima import Result as FlatMinima
    from ..experiments.learning_rate_batch_size import Result as LearningRateBatchSize
    from ..experiments.narrow_valley import Result as NarrowValley
    from ..experiments.shuffling import Result as Shuffling
    from ..experiments.square_root_rule import Result as SquareRootRule
    from ..experiments.stationary_loss import Result as StationaryLoss
    from ..experiments.two_minima import Result as TwoMinima
    from ..experiments.weak_order import Result as WeakOrder

_dots: Any = {"color": "black", "linestyle": (0, (1, 1.5)), "zorder": 5}


def anisotropic_escape(result: "AnisotropicEscape", axes: Any = None) -> np.ndarray:
    """Parts of the runs that are still in the sharp basin against t = ηk, and exits per time by route."""
    with on_axes(axes, 2) as panels:
        left, right = panels
        kinds = ("minibatch", "Hessian", "diagonal", "isotropic")
        colours = dict(zip(kinds, (vermilion, purple, green, grey), strict=True))
        for k, (name, inside) in enumerate(result.inside.items()):
            colour = next((c for kind, c in colours.items() if name.endswith(kind)), blue)
            left.plot(result.times, inside, color=colour, ls="--" if name.startswith("process") else "-")
            rate, sem = result.rates[name]
            right.errorbar(rate, -k, xerr=1.96 * sem, color=colour, marker="o", ls="")
        for k, name in enumerate(result.rates):
            if name.startswith("process"):
                rate = result.solved[name.removeprefix("process, ")][0]
                right.plot(rate, -k, color="black", marker="|", ms=12, ls="", zorder=5)
        right.plot([], [], color="black", marker="|", ms=8, ls="", label="Fokker-Planck")
        left.set(xlabel=r"$t = \eta k$", ylabel="part still inside", title="sharp basin")
        right.set(xscale="log", xlabel="exits per time", title="rates")
        right.set_yticks(-np.arange(len(result.rates)), list(result.rates))
        # Colours are named by the rates.
        left.plot([], [], color=grey, label=r"in steps of $\eta$")
        left.plot([], [], color=grey, ls="--", label="process")
        for ax in panels:
            ax.legend(loc="upper right" if ax is left else "upper left")
            bare(ax)
    return panels


def contraction(result: "Contraction", axes: Any = None) -> np.ndarray:
    """The factor by which E f shrinks in a step against η: runs, ρ_η, and the formula as printed on some slides."""
    with on_axes(axes, 1) as panels:
        ax = panels[0]
        rates = np.array(result.config.learning_rates)
        ax.errorbar(rates, result.measured, 1.96 * result.sem, color=blue, marker="o", ls="", label="runs, 95 %")
        ax.plot(rates, result.bound, label=r"$\rho_\eta$", **_dots)
        ax.plot(rates, result.printed, color=purple, ls="--", label="as printed")
        ax.axhline(0, color=grey, lw=0.6)
        ax.set(xlabel=r"learning rate $\eta$", ylabel=r"$E f$ after a step / before", title=r"$f = x^2/2$")
        ax.legend()
        bare(ax)
    return panels


def convergence(result: "Convergence", axes: Any = None) -> np.ndarray:
    """Weighted L² distances from the invariant law against t = ηk, with the slope of the sharp rate."""
    with on_axes(axes, 1) as panels:
        ax = panels[0]
        t = np.array(result.config.times)
        for kappa, distance, (colour, marker) in zip(
            result.config.temperatures, result.distances, series, strict=False
        ):
            ax.plot(t, distance, color=colour, marker=marker, ms=3, label=rf"$\kappa = {kappa}$")
        ax.plot(t, result.distances[0, 0] * np.exp(-result.sharp[0] * (t - t[0])), label="sharp rate", **_dots)
        ax.set(yscale="log", xlabel=r"$t = \eta k$", ylabel=r"$\|\rho/\rho_\infty - 1\|$", title=r"$f = 1 + x^2$")
        ax.legend()
        bare(ax)
    return panels


def escape(result: "Escape", axes: Any = None) -> np.ndarray:
    """Mean times from well to well against 1/κ and against the floor of the loss."""
    with on_axes(axes, 2) as panels:
        left, right = panels
        inverse = 1 / np.array(result.config.temperatures)
        names = ("constant", "loss-proportional")
        for k, (name, colour, marker) in enumerate(zip(names, (vermilion, green), ("s", "^"), strict=True)):
            left.plot(inverse, result.solved[k], color=colour, marker=marker, ls="", label=f"{name}, Fokker-Planck")
            left.plot(inverse, result.exact[k], **_dots)
            left.plot(inverse, result.asymptotic[k], color=colour, ls="--", lw=0.9)
            left.errorbar(
                inverse[:1], result.sampled[k : k + 1], 1.96 * result.sem[k], color=blue, marker="o", mfc="none", ms=7
            )
            right.plot(result.config.floors, result.by_floor[k], color=colour, marker=marker, label=name)
        left.plot([], [], label="quadrature", **_dots)
        left.plot([], [], color=grey, ls="--", lw=0.9, label="asymptotic formula")
        left.plot([], [], color=blue, marker="o", mfc="none", ms=7, ls="", label="particles")
        left.set(yscale="log", xlabel=r"$1/\kappa$", ylabel="mean time from -1 to 1", title="temperature")
        kappa = result.config.temperatures[0]
        right.set(xscale="log", yscale="log", xlabel="floor $f_0$", ylabel="mean time from -1 to 1")
        ticks_at(right, result.config.floors)
        right.set_title(rf"floor, $\kappa = {kappa}$")
        for ax in panels:
            ax.legend()
            bare(ax)
    return panels


def two_minima(result: "TwoMinima", axes: Any = None) -> np.ndarray:
    """The law with its two wells, the occupancy of the quiet one, and switching times, by every route."""
    with on_axes(axes, 3) as panels:
        law, occupancy, times = panels
        x = result.law.grid.centres[0]
        shown = np.abs(x) < 2.2
        law.fill_between(x[shown], result.law.pdf[shown], color=sky, alpha=0.5, lw=0, label="Fokker-Planck")
        law.plot(x[shown], 0.25 * (x[shown] ** 2 - 1) ** 2, color=grey, lw=0.9, label="loss")
        law.set(xlabel="$x$", ylabel="density", title="quiet left, noisy right", ylim=(0, 1.3 * result.law.pdf.max()))
        law.legend()
        _by_route(occupancy, {name: [value] for name, value in result.occupancy.items()}, ["P(quiet)"])
        occupancy.set(title="occupancy", xlabel="route")
        _by_route(times, dict(result.switching), ["quiet → noisy", "noisy → quiet"])
        times.set(title="mean switching times", xlabel="route")
        for ax in panels:
            bare(ax)
    return panels


def _by_route(ax: Any, values: dict[str, Any], names: list[str]) -> None:
    for k, (name, (colour, marker)) in enumerate(zip(names, series, strict=False)):
        mean, sem = np.array([v[k] for v in values.values()]).T
        ax.errorbar(range(len(values)), mean, 1.96 * sem, color=colour, marker=marker, ls="", label=name)
        ax.axhline(mean[0], color="black", ls=(0, (1, 1.5)), lw=0.9)
    ax.set_xticks(range(len(values)), list(values), rotation=20)
    ax.margins(x=0.2, y=0.3)
    ax.legend()


def narrow_valley(result: "NarrowValley", axes: Any = None) -> np.ndarray:
    """Paths in the plane, and their distances from the minimum against steps."""
    with on_axes(axes, 2) as panels:
        plane, distance = panels
        for (name, path), (colour, marker) in zip(result.paths.items(), series, strict=False):
            size = np.abs(path).max(axis=1)
            distance.plot(np.maximum(size, 1e-12), color=colour, label=name)
            if result.decay[name][1] < 1:
                plane.plot(*path[:60].T, color=colour, marker=marker, ms=2, lw=0.7, label=name)
        grid = np.meshgrid(np.linspace(-6, 10.5, 100), np.linspace(-1.6, 1.6, 100))
        h = result.config.curvatures
        plane.contour(*grid, h[0] * grid[0] ** 2 + h[1] * grid[1] ** 2, 8, colors=grey, linewidths=0.4)
        # Room above the paths for the names.
        plane.set(xlabel="$x$", ylabel="$y$", title="the first 60 steps", ylim=(-4.2, 7))
        distance.set(yscale="log", xlabel="step", ylabel="distance", title="without noise", ylim=(1e-12, 1e6))
        for ax in panels:
            ax.legend(loc="upper right")
            bare(ax)
    return panels


def flat_minima(result: "FlatMinima", axes: Any = None) -> np.ndarray:
    """Laws of the angle for each noise, the mass on the flat side by route, and the drift under label noise."""
    with on_axes(axes, 3) as panels:
        laws, mass, drift = panels
        for (name, (phi, pdf)), (colour, marker) in zip(result.marginals.items(), series, strict=False):
            laws.plot(phi, pdf, color=colour, marker=marker, ms=3, label=name)
        laws.set(xlabel=r"$\varphi$ (sharp at 0, flat at $\pi$)", ylabel="density", title="angle, Fokker-Planck")
        for route, (colour, marker) in zip(("closed form", "Fokker-Planck", "particles"), series[::-1], strict=False):
            found = [(k, *routes[route]) for k, routes in enumerate(result.flat.values()) if route in routes]
            k, value, error = np.transpose(found)
            mass.errorbar(k, value, 1.96 * error, color=colour, marker=marker, ls="", mfc="none", label=route)
        mass.axhline(result.limit, color="black", ls=(0, (1, 1.5)), label=r"$\det(H)^{-1/2}$")
        mass.set_xticks(range(len(result.flat)), list(result.flat), rotation=15)
        mass.margins(x=0.2, y=0.35)
        mass.set(xlabel="noise", ylabel=r"$P(\cos\varphi < 0)$", title="mass on the flat side")
        mean, sem, expected = result.angles
        drift.errorbar(result.label_times, mean, 1.96 * sem, color=blue, marker="o", ls="", label="label-noise SGD")
        drift.plot(result.label_times, expected, label=r"flow of $-\nabla\,\mathrm{tr}\,H$", **_dots)
        drift.set(xlabel=r"$t = \eta k$", ylabel=r"$E\,\log\tan(\varphi/2)$", title="label noise")
        for ax in panels:
            ax.legend()
            bare(ax)
    return panels


def shuffling(result: "Shuffling", axes: Any = None) -> np.ndarray:
    """Distance of the exact mean after one epoch from two flows, against η, for both samplings."""
    with on_axes(axes, 2) as panels:
        eta = np.array(result.config.learning_rates)
        for ax, sampling, errors in zip(panels, ("reshuffled", "independent"), result.errors, strict=True):
            for (colour, marker), error, name in zip(series, errors, ("with the variance", "without"), strict=False):
                ax.plot(eta, error, color=colour, marker=marker, label=f"flow {name}")
            slope(ax, eta[::-1], 0.5 * errors.min(), 3.0, above=False)
            slope(ax, eta[::-1], 1.6 * errors[:, -1].max(), 2.0)
            ax.set(xscale="log", yscale="log", xlabel=r"$\eta$", ylabel="distance of the mean", title=sampling)
            ticks_at(ax, eta)
            ax.set_ylim(0.2 * errors.min(), 30 * errors.max())
            ax.legend(loc="upper left")
            bare(ax)
    return panels


def square_root_rule(result: "SquareRootRule", axes: Any = None) -> np.ndarray:
    """E f against t, that is against examples, for each method: batches of every size under its rule and the other."""
    from ..experiments.square_root_rule import methods, rules

    with on_axes(axes, len(methods)) as panels:
        for m, (ax, method) in enumerate(zip(panels, methods, strict=True)):
            own = rules.index("linear" if method == "SGD" else "square-root")
            for b, (k, (colour, marker)) in enumerate(zip(result.config.batches, series, strict=False)):
                # Curves that should coincide: markers at times of their own.
                shown = slice(b, None, len(result.config.batches))
                label = f"$k = {k}$, {rules[own]}"
                ax.plot(result.times[shown], result.losses[m, own, b, shown], marker, color=colour, label=label)
                if k > 1:
                    label = f"$k = {k}$, {rules[1 - own]}"
                    ax.plot(result.times, result.losses[m, 1 - own, b], color=colour, ls="--", label=label)
            ax.plot(result.times, result.limit_losses[m], label="SDE", **_dots)
            ax.set(yscale="log", ylim=(0.08, 12), ylabel="$E f$", title=method)
            ax.set_xlabel(r"$t$ (examples, times $\eta^2$ of $k = 1$)")
            ax.legend(loc="upper right")
            bare(ax)
    return panels


def weak_order(result: "WeakOrder", axes: Any = None) -> np.ndarray:
    """Errors of both models against η, SVAG on its way to the SDE, and growth rates of E x² at two curvatures."""
    with on_axes(axes, 3) as panels:
        errors, ladder, rates = panels
        markers = iter(series)
        for power, study in result.studies.items():
            for k, name in enumerate(study.names):
                colour, marker = next(markers)
                label = f"order {power}, E {name}: {study.orders[k]:.2f}"
                size = np.abs(study.errors[k])
                errors.errorbar(
                    study.learning_rates, size, 1.96 * study.sem[k], color=colour, marker=marker, label=label
                )
            slope(errors, study.learning_rates, 0.6 * np.abs(study.errors[:, -1]).min(), power, above=False)
        errors.set(xscale="log", yscale="log", xlabel=r"learning rate $\eta$", ylabel="weak error")
        ticks_at(errors, result.config.learning_rates)
        errors.set_title("SGD against its models")
        measured, sem, exact = result.ladder
        levels = np.array(result.config.levels)
        ladder.errorbar(levels, measured, 1.96 * sem, color=blue, marker="o", ls="", label="runs, 95 %")
        ladder.plot(levels, exact, label="exact", **_dots)
        ladder.axhline(result.limit, color=purple, ls="--", label="SDE")
        ladder.set(xscale="log", xlabel="amplification $l$", ylabel=r"$E x^2$", title="SVAG")
        ticks_at(ladder, levels)
        _growth(rates, np.array([0.2, 3.8]), 0.7)
        for ax in panels:
            ax.legend()
            bare(ax)
    return panels


def _growth(ax: Any, curvatures: np.ndarray, marked: float) -> None:
    from ..theory import linear_stability

    eta = np.linspace(0.02, 1.3, 200)
    for k, (name, colour) in enumerate((("SGD", vermilion), ("SDE", green))):
        ax.plot(
            eta,
            [linear_stability.lyapunov_exponents(curvatures, e)[k] for e in eta],
            color=colour,
            label=rf"$\log|x|$, {name}",
        )
        squares = [linear_stability.mean_square_rates(curvatures, e)[k] for e in eta]
        ax.plot(eta, squares, color=colour, ls="--", label=rf"$E x^2$, {name}")
    ax.axhline(0, color=grey, lw=0.6)
    ax.axvline(marked, color=grey, lw=0.6)
    title = f"curvatures {curvatures[0]:g} and {curvatures[1]:g}"
    ax.set(xlabel=r"learning rate $\eta$", ylabel="growth rate", ylim=(-5, 3), title=title)


def stationary_loss(result: "StationaryLoss", axes: Any = None) -> np.ndarray:
    """E f - min f of runs over each prediction, against η λ_max, for every batch size."""
    names = {
        "Lyapunov": "discrete Lyapunov",
        "tr C": r"$\eta\,\mathrm{tr}\,C/4B$",
        "tr H": r"$\eta\,\mathrm{tr}\,H/4B$",
    }
    with on_axes(axes, len(result.config.batches)) as panels:
        for ax, batch, measured, sem, row in zip(
            panels, result.config.batches, result.measured, result.sem, range(len(panels)), strict=True
        ):
            for (name, label), (colour, marker) in zip(names.items(), series, strict=False):
                predicted = result.predicted[name][row]
                ratio, error = measured / predicted, 1.96 * sem / predicted
                ax.errorbar(result.config.rates, ratio, error, color=colour, marker=marker, label=label)
            ax.axhline(1, **_dots)
            ax.set(
                yscale="log", xlabel=r"$\eta\,\lambda_{\max}(H)$", ylabel="measured / predicted", title=f"$B = {batch}$"
            )
            ax.set_yticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
            ax.set_yticks([], minor=True)
            ax.legend()
            bare(ax)
    return panels


def learning_rate_batch_size(result: "LearningRateBatchSize", axes: Any = None) -> np.ndarray:
    """Of the first loss: curves against epochs and against t, distances at equal η/B over their floor, and traces."""
    with on_axes(axes, 4) as panels:
        epochs, clock, distances, traces = panels
        (small, equal), *_ = result.pairs()
        shown = [small, equal, (small[0], equal[1]), (equal[0], small[1])]
        count = result.curves.shape[3]
        for (r, b), (colour, marker), style in zip(shown, series, ("-", "--", "-", "-"), strict=False):
            mean = result.curves[0, r, b, :, :, 0, 0].mean(axis=1)
            label = rf"$\eta = {result.config.rates[r]:g}$, $B = {result.config.batches[b]}$"
            line: Any = {"color": colour, "marker": marker, "ms": 3, "ls": style, "label": label}
            if style == "--":
                # Rings around the points of the curve that it is to agree with.
                line |= {"ms": 6, "mfc": "none"}
            epochs.plot(np.linspace(0, result.config.epochs, count), mean, **line)
            clock.plot(result.times(r, b), mean, **line)
        epochs.set(yscale="log", xlabel="epochs", ylabel="training loss", title=f"{result.config.losses[0]} loss")
        clock.set(yscale="log", xlabel=r"$t = \sum\eta$", ylabel="training loss", title="on the clock of the SDE")
        for k, (name, (colour, marker)) in enumerate(zip(result.config.losses, series, strict=False)):
            found = [(result.config.rates[b[0]], *result.distance(k, a, b)) for a, b in result.pairs()]
            rate, distance, floor = np.transpose(found)
            distances.plot(rate, distance / floor, color=colour, marker=marker, ls="", label=name)
            C, H = (result.traces[k, ..., 0, m].mean(axis=-1) for m in (0, 1))
            ratio = C / H
            for b, batch in enumerate(result.config.batches):
                label = f"{name}, $B = {batch}$"
                traces.plot(
                    result.config.rates, ratio[:, b], marker, color=colour, alpha=1 / (1 + b), ls="-", label=label
                )
        distances.axhline(1, label="noise between runs", **_dots)
        distances.set(xscale="log", yscale="log", xlabel=r"larger $\eta$ of the pair", ylabel="distance / noise floor")
        distances.set_title(r"equal $\eta/B$")
        ticks_at(distances, sorted({result.config.rates[b[0]] for _, b in result.pairs()}))
        traces.set(
            xscale="log", yscale="log", xlabel=r"learning rate $\eta$", ylabel="tr $C$ / tr $H$", title="at the end"
        )
        ticks_at(traces, result.config.rates)
        for ax in panels:
            few_decades(ax)
            ax.legend()
            bare(ax)
    return panels
