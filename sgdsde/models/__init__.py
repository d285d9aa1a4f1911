"""Optimisers as Itô diffusions: one process a file, each ready for every solver."""

from .modified_sgd import ModifiedSGD as ModifiedSGD
from .momentum import Momentum as Momentum
from .sgd import SGD as SGD

__all__ = ["SGD", "ModifiedSGD", "Momentum"]
