"""Optimisers as the discrete algorithms that they are: ensembles of runs, measured as `solvers.sde.simulate` is."""

from .adam import Adam as Adam
from .label_noise import LabelNoiseSGD as LabelNoiseSGD
from .momentum import Momentum as Momentum
from .optimizer import AbstractGradient as AbstractGradient, AbstractOptimizer as AbstractOptimizer
from .preconditioned import PreconditionedSGD as PreconditionedSGD
from .rmsprop import RMSProp as RMSProp
from .run import Ensemble as Ensemble, run as run
from .sam import DNSAM as DNSAM, SAM as SAM, USAM as USAM
from .sgd import SGD as SGD
from .sign_sgd import SignSGD as SignSGD
from .svag import SVAG as SVAG
