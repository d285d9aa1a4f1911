"""Spectra of the Hessian and of the gradient covariance."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .style import bare, green, grey, on_axes, purple

if TYPE_CHECKING:
    from .._spectra import Spectrum
    from ..factors import NoiseReport

# The width of the kernel is this part of the range of eigenvalues.
_smoothing = 0.01


def spectral_densities(report: "NoiseReport", axes: Any = None) -> np.ndarray:
    """The densities of the eigenvalues of H and of C, logarithmic, with a tick at each of the largest.

    Every eigenvalue is smoothed to a normal law whose width is 1 % of the range. Held-out examples are dashed.
    """
    with on_axes(axes, 2) as panels:
        names = (("H", "Hessian $H$", green), ("C", "gradient covariance $C$", purple))
        for ax, (name, title, colour) in zip(panels, names, strict=True):
            spectrum = getattr(report, name)
            other = None if report.held_out is None else getattr(report.held_out, name)
            low, high = _range([spectrum] if other is None else [spectrum, other])
            width = _smoothing * (high - low)
            at = np.linspace(low - 4 * width, high + 4 * width, 1200)
            density = spectrum.density(at, width)
            ax.fill_between(at, density, color=colour, alpha=0.3, linewidth=0)
            ax.plot(at, density, color=colour, label="training")
            if other is not None:
                ax.plot(at, other.density(at, width), color=grey, linestyle="--", linewidth=1, label="held out")
                ax.legend()
            # The kernel of one eigenvalue alone is still seen over two decades.
            alone = 1 / (report.parameters * width * np.sqrt(2 * np.pi))
            ax.set(yscale="log", ylim=(0.01 * alone, 3 * density.max()), xlabel=r"eigenvalue $\lambda$", title=title)
            ax.plot(spectrum.top, np.zeros_like(spectrum.top), "|", color=colour, transform=ax.get_xaxis_transform())
            ax.set_xlim(at[0], at[-1])
            bare(ax)
        panels[0].set_ylabel("density of eigenvalues")
    return panels


def _range(spectra: "list[Spectrum]") -> tuple[float, float]:
    low = min(min(spectrum.lowest, 0.0) for spectrum in spectra)
    high = max(max(float(spectrum.top[0]), 0.0) for spectrum in spectra)
    # All eigenvalues may be 0.
    return (low, high) if high > low else (low - 1, high + 1)
