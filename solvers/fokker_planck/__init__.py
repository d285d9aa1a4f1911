"""The Fokker-Planck equation ∂tρ = -∂i(b_i ρ) + ∂i∂j(D_ij ρ) of a process, on a grid of finite volumes.

`assemble` builds the generator from drift and noise alone, for any positive semidefinite tensor D in two and three
dimensions; `stationary`, `evolve`, `spectrum`, `current` and `relaxation` use it. `radial` reduces a process that is
symmetric under rotations, in any number of dimensions, to its radius. `cut_off` says what the box leaves out, and
`stein` whether a law, of whatever origin, is stationary.
`exit_time`, `quasi_stationary` and `committor` say when a process leaves a set, how it behaves before that, and how it
goes from one set to another: they take the process, the grid, and boolean functions of a point.

Stationary laws, spectra and exit times have derivatives with respect to the numbers that a process with a diagonal D
holds, by `jax.grad`, and work under `jit` and `vmap`.

Rare events: on one axis, and for `radial` processes, rates keep all their digits down to 1e-300. On more axes a rate is
told from zero if it is above about 1e-15 of the mean rate of jumps in its mode, that is D / width² there; below, all
functions refuse. Wider cells and more noise help. All of this needs float64:
`jax.config.update("jax_enable_x64", True)`.
"""

from .assembly import Boundary as Boundary, Generator as Generator, assemble as assemble, coarsen as coarsen
from .committor import Committor as Committor, committor as committor
from .current import Current as Current, current as current
from .cut_off import CutOff as CutOff, cut_off as cut_off
from .evolution import Evolution as Evolution, evolve as evolve
from .exit_time import ExitTime as ExitTime, exit_time as exit_time
from .jump_edges import LongJumpsError as LongJumpsError
from .quasi_stationary import QuasiStationary as QuasiStationary, quasi_stationary as quasi_stationary
from .radial import (
    Radial as Radial,
    RadialExitTime as RadialExitTime,
    RadialSpectrum as RadialSpectrum,
    radial as radial,
)
from .reference import Reference as Reference
from .relaxation import Relaxation as Relaxation, relaxation as relaxation
from .spectrum import Spectrum as Spectrum, spectrum as spectrum
from .stationary import stationary as stationary, truncated_mass as truncated_mass
from .stein import Stein as Stein, stein as stein
from .tails import essential_threshold as essential_threshold, tail_index as tail_index
