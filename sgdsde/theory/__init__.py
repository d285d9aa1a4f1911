"""Closed forms to hold against simulations and Fokker-Planck solutions; nothing here uses those solvers."""

from . import (
    balance as balance,
    contraction as contraction,
    existence as existence,
    fluctuation_dissipation as fluctuation_dissipation,
    gaps as gaps,
    geometric as geometric,
    limit_point as limit_point,
    linear_regression as linear_regression,
    low_rank as low_rank,
    momentum as momentum,
    ornstein_uhlenbeck as ornstein_uhlenbeck,
    preconditioned as preconditioned,
    student as student,
    tails as tails,
)
from .contraction import contraction_rate as contraction_rate
from .covariance import (
    commuting_covariance as commuting_covariance,
    excess_loss as excess_loss,
    squared_gradient as squared_gradient,
    stationary_covariance as stationary_covariance,
)
from .existence import critical_temperature as critical_temperature
from .invariant import gibbs as gibbs, power_law as power_law

__all__ = [
    "balance",
    "commuting_covariance",
    "contraction",
    "contraction_rate",
    "critical_temperature",
    "excess_loss",
    "existence",
    "fluctuation_dissipation",
    "gaps",
    "geometric",
    "gibbs",
    "limit_point",
    "linear_regression",
    "low_rank",
    "momentum",
    "ornstein_uhlenbeck",
    "power_law",
    "preconditioned",
    "squared_gradient",
    "stationary_covariance",
    "student",
    "tails",
]
