"""Optimisers as Itô diffusions: one process a file, each ready for every solver."""

from .sgd import SGD as SGD

__all__ = ["SGD"]
