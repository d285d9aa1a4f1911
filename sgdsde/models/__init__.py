"""Optimisers as Itô diffusions: one process a file, each ready for every solver.

Beside drift and noise each has its clock: `clock` is the time of one step of the algorithm, `time(step)` and `steps(t)`
convert. `initial(x)` is the state in which the algorithm starts at x, and `position(state)` the x of a state: they
differ where the algorithm has a memory.
"""

from .adam import Adam as Adam
from .embedded_sgd import EmbeddedSGD as EmbeddedSGD
from .gradient_flow import GradientFlow as GradientFlow
from .linearised_sgd import LinearisedSGD as LinearisedSGD
from .model import AbstractModel as AbstractModel
from .modified_sgd import ModifiedSGD as ModifiedSGD
from .momentum import Momentum as Momentum
from .preconditioned_sgd import PreconditionedSGD as PreconditionedSGD
from .random_reshuffling import RandomReshuffling as RandomReshuffling
from .rmsprop import RMSProp as RMSProp
from .sam import DNSAM as DNSAM, SAM as SAM, USAM as USAM
from .sgd import SGD as SGD
from .sign_sgd import SignSGD as SignSGD

__all__ = [
    "DNSAM",
    "SAM",
    "SGD",
    "USAM",
    "AbstractModel",
    "Adam",
    "EmbeddedSGD",
    "GradientFlow",
    "LinearisedSGD",
    "ModifiedSGD",
    "Momentum",
    "PreconditionedSGD",
    "RMSProp",
    "RandomReshuffling",
    "SignSGD",
]
