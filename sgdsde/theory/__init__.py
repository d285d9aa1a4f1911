"""Closed forms to hold against simulations and Fokker-Planck solutions; nothing here uses those solvers."""

from . import (
    linear_regression as linear_regression,
    momentum as momentum,
    ornstein_uhlenbeck as ornstein_uhlenbeck,
    preconditioned as preconditioned,
    student as student,
    tails as tails,
)
from .covariance import (
    commuting_covariance as commuting_covariance,
    excess_loss as excess_loss,
    squared_gradient as squared_gradient,
    stationary_covariance as stationary_covariance,
)
from .invariant import gibbs as gibbs, power_law as power_law

__all__ = [
    "commuting_covariance",
    "excess_loss",
    "gibbs",
    "linear_regression",
    "momentum",
    "ornstein_uhlenbeck",
    "power_law",
    "preconditioned",
    "squared_gradient",
    "stationary_covariance",
    "student",
    "tails",
]
