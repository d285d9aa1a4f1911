"""The SDE solvers of diffrax as methods: their steps, driven by the increments of this library."""

from functools import partial
from typing import Any, ClassVar, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

from ..process import AbstractDiffusion, noise_kind
from .brownian import Increment
from .method import AbstractMethod
from .probing import commutes, require_additive
from .stratonovich_heun import stratonovich_drift

# The finest part of a step that an adaptive run can tell apart, as a power of 1/2, and how many it may take.
_finest = 2.0**-12
_most_substeps = 4096


class Diffrax(AbstractMethod):
    """A solver of diffrax as a method: `Diffrax(diffrax.ShARK())` steps as ShARK, on the increments of this library.

    For comparisons, and for solvers that are not here. `solver` is any that diffrax marks as converging to the Itô or
    the Stratonovich solution, except those for Langevin equations, which are of another form. The process stays Itô's:
    a Stratonovich solver gets the drift of `stratonovich_drift`. Each step begins afresh, so that a solver which hands
    something on from step to step, as `ReversibleHeun` does, is another method here.

    `strong_order` and `calculus` are those of the solver; `weak_order` is NaN, since diffrax declares none. Raises
    `ValueError` for noise on which the solver could not have its order: for `ShARK`, `SRA1` and `SEA` noise that
    depends on x; for `ItoMilstein` and all others of strong order 1 and more noise that does not commute, which
    isotropic noise that depends on x in two or more dimensions does not.

    With a `stepsize_controller`, such as `diffrax.PIDController(rtol=1e-3, atol=1e-6)`, each step is an adaptive run
    over [t, t + dt], in parts down to dt / 4096; where that is not enough the state becomes NaN. Its Brownian path has
    the increment over the whole step that every other method sees. In between it is a Brownian bridge whose random bits
    are a function of that increment and t: runs with different dt agree on W at their common steps only. Such a run has
    a tolerance and no strong order in dt.
    """

    solver: Any
    stepsize_controller: Any = None

    weak_order: ClassVar[float] = float("nan")

    def __check_init__(self):
        solver, known = self.solver, (diffrax.AbstractItoSolver, diffrax.AbstractStratonovichSolver)
        if not isinstance(solver, known) or _is_langevin(_unwrapped(solver)):
            raise TypeError(
                "`solver` must be a solver of diffrax for Itô or Stratonovich equations, such as `diffrax.Heun()`, "
                f"and not one for Langevin equations, got {solver!r}."
            )
        controller = self.stepsize_controller
        if controller is None and isinstance(solver, diffrax.HalfSolver):
            raise ValueError(
                "`HalfSolver` looks at the Brownian motion within a step: give a `stepsize_controller` too."
            )
        if not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController | None):
            raise TypeError(
                "`stepsize_controller` must be an adaptive one, such as `diffrax.PIDController(rtol=1e-3, atol=1e-6)`, "
                f"or None for one step of the solver per step, got {controller!r}."
            )

    @property
    def strong_order(self) -> float:
        """What diffrax declares; NaN if nothing, or for an adaptive run."""
        order = self.solver.strong_order(None) if self.stepsize_controller is None else None
        return float("nan") if order is None else float(order)

    @property
    def calculus(self) -> Literal["ito", "stratonovich"]:
        """Which of the two solutions the solver converges to."""
        return "ito" if isinstance(self.solver, diffrax.AbstractItoSolver) else "stratonovich"

    def needs(self, process, x):
        name = f"Diffrax({type(_unwrapped(self.solver)).__name__})"
        area = _levy_area(self.solver)
        if issubclass(area, diffrax.AbstractSpaceTimeTimeLevyArea):
            raise ValueError(f"`{name}` needs space-time-time Lévy areas, which are not drawn here.")
        if _is_additive(self.solver):
            require_additive(name, process, x)
        elif self.solver.strong_order(None) in (None, 0.5):
            pass
        elif not commutes(process, x):
            raise ValueError(
                f"`{name}` needs noise that commutes, but this noise does not: its strong order would be 1/2. Use "
                "`Milstein`, which takes Lévy areas."
            )
        if self.stepsize_controller is not None:
            return "increment"
        return "time" if issubclass(area, diffrax.AbstractSpaceTimeLevyArea) else "increment"

    def step(self, process, t, x, dt, increment):
        # diffrax takes steps as differences of times: on a clock that starts at 0 these are exact.
        zero = jnp.zeros_like(dt)
        if self.stepsize_controller is None:
            terms = _terms(self, process, t, x, _WholeStep(dt, increment))
            # `ItoMilstein` computes float32 states in JAX's default dtype.
            with jax.numpy_dtype_promotion("standard"):
                state = self.solver.init(terms, zero, dt, x, None)
                return self.solver.step(terms, zero, dt, x, None, state, made_jump=False)[0].astype(x.dtype)
        terms = _terms(self, process, t, x, _bridge(_levy_area(self.solver), t, dt, increment))
        with jax.numpy_dtype_promotion("standard"):
            run = diffrax.diffeqsolve(
                terms,
                self.solver,
                zero,
                dt,
                dt,
                x,
                stepsize_controller=self.stepsize_controller,
                adjoint=diffrax.ForwardMode(),
                max_steps=_most_substeps,
                throw=False,
            )
        assert run.ys is not None
        return jnp.where(run.result == diffrax.RESULTS.successful, run.ys[0].astype(x.dtype), jnp.nan)


class _WholeStep(diffrax.AbstractPath):
    """A control that knows a Brownian motion over one step, from 0 to dt, and nothing in between."""

    dt: Float[Array, ""]
    increment: Increment

    @property
    def t0(self):
        return jnp.zeros_like(self.dt)

    @property
    def t1(self):
        return self.dt

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        dw, dz = self.increment.dw, self.increment.dz
        if not use_levy:
            return dw
        if dz is None:
            return diffrax.BrownianIncrement(dt=self.dt, W=dw)
        return diffrax.SpaceTimeLevyArea(dt=self.dt, W=dw, H=dz / self.dt - 0.5 * dw)


class _Bridge(diffrax.AbstractBrownianPath):
    """A Brownian motion on [0, dt] with a given end: that of `tree` on [0, 1], scaled, plus a straight line."""

    dt: Float[Array, ""]
    dw: Float[Array, " m"]
    tree: diffrax.VirtualBrownianTree
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):
        return jnp.zeros_like(self.dt)

    @property
    def t1(self):
        return self.dt

    def evaluate(self, t0, t1=None, left=True, use_levy=False):
        if t1 is None:
            t0, t1 = self.t0, t0
        begin, end = (jnp.minimum(t / self.dt, 1) for t in (t0, t1))
        root, one = jnp.sqrt(self.dt), jnp.ones_like(self.dt)
        part, whole = (self.tree.evaluate(a, b, use_levy=True) for a, b in ((begin, end), (jnp.zeros_like(one), one)))
        dw = root * part.W + (end - begin) * (self.dw - root * whole.W)
        if not use_levy:
            return dw
        if isinstance(part, diffrax.SpaceTimeLevyArea):
            # The area is that between the path and its chord: a straight line adds nothing.
            return diffrax.SpaceTimeLevyArea(dt=t1 - t0, W=dw, H=root * part.H)
        return diffrax.BrownianIncrement(dt=t1 - t0, W=dw)


def _bridge(area: type, t, dt, increment: Increment) -> _Bridge:
    dw, key = increment.dw, jax.random.key(0)
    for number in [t.astype(dw.dtype), *dw]:
        for word in jnp.ravel(lax.bitcast_convert_type(number, jnp.uint32)):
            key = jax.random.fold_in(key, word)
    timed = issubclass(area, diffrax.AbstractSpaceTimeLevyArea)
    kind = diffrax.SpaceTimeLevyArea if timed else diffrax.BrownianIncrement
    shape = jax.ShapeDtypeStruct(dw.shape, dw.dtype)
    tree = diffrax.VirtualBrownianTree(0.0, 1.0, _finest, shape, key, levy_area=kind)
    return _Bridge(dt=dt, dw=dw, tree=tree, levy_area=kind)


def _terms(method: Diffrax, process: AbstractDiffusion, t, x, control) -> diffrax.MultiTerm:
    """The process from time t on."""
    additive = _is_additive(method.solver)

    def time(s):
        # Stages of diffrax are at float64 times when that is JAX's default, whatever the state is.
        return t + jnp.asarray(s, t.dtype)

    def drift(s, y, args):
        b = process.drift if method.calculus == "ito" or additive else partial(stratonovich_drift, process)
        return b(time(s), y)

    def noise(s, y, args):
        # Solvers for additive noise insist on a noise that visibly is a function of time alone.
        operator = process.noise(time(s), x if additive else y)
        if noise_kind(operator) == "general":
            return operator.as_matrix()
        return lx.DiagonalLinearOperator(operator.mv(jnp.ones_like(y)))

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(noise, control))


def _unwrapped(solver):
    return solver.solver if isinstance(solver, diffrax.HalfSolver) else solver


def _levy_area(solver) -> type:
    return getattr(_unwrapped(solver), "minimal_levy_area", diffrax.AbstractBrownianIncrement)


def _is_additive(solver) -> bool:
    solver = _unwrapped(solver)
    return isinstance(solver, diffrax.AbstractSRK) and solver.tableau.is_additive_noise()


def _is_langevin(solver) -> bool:
    return hasattr(solver, "minimal_levy_area") and not isinstance(solver, diffrax.AbstractSRK)
