"""Optimisers as the discrete algorithms that they are: ensembles of runs, measured as `solvers.sde.simulate` is."""

from .momentum import Momentum as Momentum
from .optimizer import AbstractGradient as AbstractGradient, AbstractOptimizer as AbstractOptimizer
from .run import Ensemble as Ensemble, run as run
from .sgd import SGD as SGD
