"""New axes for the results of `solvers`, which imports no plotting library: in the style of `plots`."""

import importlib

from solvers import axes

axes.supply(lambda: importlib.import_module("sgdsde.plots.style").new_axes())
