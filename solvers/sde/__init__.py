"""Simulation of SDEs: integrators, ensembles with streamed observables, and order studies."""

from .brownian import Increment as Increment
from .diffrax import Diffrax as Diffrax
from .drift_implicit_euler import DriftImplicitEuler as DriftImplicitEuler
from .ensemble import Ensemble as Ensemble, simulate as simulate
from .euler_maruyama import EulerMaruyama as EulerMaruyama
from .exponential_euler import ExponentialEuler as ExponentialEuler
from .extrapolation import Extrapolation as Extrapolation, extrapolated as extrapolated
from .lamperti import Lamperti as Lamperti
from .leimkuhler_matthews import LeimkuhlerMatthews as LeimkuhlerMatthews
from .method import AbstractMethod as AbstractMethod
from .milstein import Milstein as Milstein
from .multilevel import Multilevel as Multilevel, multilevel as multilevel
from .observables import AbstractObservable as AbstractObservable, Histogram as Histogram, Moments as Moments
from .order import OrderStudy as OrderStudy, strong_order as strong_order, weak_order as weak_order
from .passage import FirstPassage as FirstPassage, FirstPassageResult as FirstPassageResult
from .skrock import PSKROCK as PSKROCK, SKROCK as SKROCK
from .splitting import Splitting as Splitting, splitting as splitting
from .sra1 import SRA1 as SRA1
from .stratonovich_heun import StratonovichHeun as StratonovichHeun, stratonovich_drift as stratonovich_drift
from .sweep import sweep as sweep
from .tamed_euler import TamedEuler as TamedEuler
from .time_changed import TimeChanged as TimeChanged
from .weak_rk2 import WeakRK2 as WeakRK2
