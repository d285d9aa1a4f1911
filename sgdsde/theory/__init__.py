"""Closed forms to hold against simulations and Fokker-Planck solutions; nothing here uses those solvers."""

from . import student as student
from .covariance import excess_loss as excess_loss, stationary_covariance as stationary_covariance
from .invariant import gibbs as gibbs, power_law as power_law

__all__ = ["excess_loss", "gibbs", "power_law", "stationary_covariance", "student"]
