"""Figures. Each function draws on the axes that it is given, or on new ones, and returns them.

Colours mean the same everywhere: blue areas are particles, vermilion Fokker-Planck, black dots the closed form, and
grey what is there to guide the eye. matplotlib is imported when a figure is asked for, and its settings are left alone.
"""

from .. import _axes as _axes
from .invariant import invariant_densities as invariant_densities, save_comparisons as save_comparisons

__all__ = ["invariant_densities", "save_comparisons"]
