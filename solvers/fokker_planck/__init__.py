"""The Fokker-Planck equation ∂tρ = -∂i(b_i ρ) + ∂i∂j(D_ij ρ) of a process, on a grid of finite volumes.

`assemble` builds the generator from drift and noise alone; `stationary`, `evolve`, `spectrum` and `current` use it.
It needs float64: `jax.config.update("jax_enable_x64", True)`.
"""

from .assembly import Boundary as Boundary, Generator as Generator, assemble as assemble, coarsen as coarsen
from .current import Current as Current, current as current
from .evolution import Evolution as Evolution, evolve as evolve
from .spectrum import Spectrum as Spectrum, spectrum as spectrum
from .stationary import stationary as stationary, truncated_mass as truncated_mass
