"""Simulation of SDEs: integrators, ensembles with streamed observables, and order studies."""

from .brownian import Increment as Increment
from .ensemble import Ensemble as Ensemble, simulate as simulate
from .euler_maruyama import EulerMaruyama as EulerMaruyama
from .method import AbstractMethod as AbstractMethod
from .milstein import Milstein as Milstein
from .observables import AbstractObservable as AbstractObservable, Histogram as Histogram, Moments as Moments
from .order import OrderStudy as OrderStudy, strong_order as strong_order, weak_order as weak_order
