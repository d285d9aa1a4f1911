"""SGD on a line, solved by quadrature for any loss and any noise D(x): invariant law and mean first passage times.

dX = -f' dt + √(2D(X)) dB, Itô, t = η · steps. With S' = f'/D the invariant law is ρ ∝ D⁻¹e^{-S}, and

    E T(a → b) = ∫_a^b e^{S(y)} ∫_{-∞}^y D⁻¹e^{-S(z)} dz dy,   a < b.

`loss` is a JAX function of one point of shape (1,); `diffusion` is D: a number (constant noise, D = ησ), or a JAX
function of one point (`lambda x: kappa * loss(x)` for loss-proportional noise). Needs 64-bit JAX.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._checks import scalar_valued
from ._checked import positive


class LineLaw(NamedTuple):
    """An invariant law as values of its density at quadrature nodes, in ascending order, with their masses."""

    nodes: Float[np.ndarray, " n"]
    pdf: Float[np.ndarray, " n"]
    mass: Float[np.ndarray, " n"]

    def expect(self, fn: Callable) -> float:
        """E fn(X), fn a vectorised function of numbers: `law.expect(np.square)`. Its tails must be integrable."""
        return float(np.sum(self.mass * fn(self.nodes)))


def invariant_law(loss: Callable, diffusion) -> LineLaw:
    """ρ ∝ D⁻¹e^{-S}: Gibbs for a constant D, f^{-1-1/κ} for D = κf, and anything between.

    `ValueError` if it cannot be normalised, or if structure finer than 1e-4 of the distance from the origin shows. A
    single well narrower than about 1e-3 of its distance may not show, and then its mass is missed.
    """
    pointwise = _pointwise(loss, diffusion)
    return _converged(lambda panels: _law(_Panels(pointwise, 0.0, np.inf, panels)), lambda law: law.expect(_tame))


def mass_below(loss: Callable, diffusion, x: float) -> float:
    """P(X < x) in the invariant law: which of two wells SGD prefers, for x between them."""
    pointwise = _pointwise(loss, diffusion)

    def split(panels):
        law = _law(_Panels(pointwise, float(x), np.inf, panels))
        return float(np.sum(law.mass[law.nodes < x]))

    return _converged(split, float)


def mean_passage_time(loss: Callable, diffusion, start: float, target: float) -> float:
    """The mean time from `start` to `target`, exact but for about 1e-9; inf beyond the range of floats.

    The line behind the start is not bounded: the loss must grow there, so that the law has a finite mass.
    """
    start, target = float(start), float(target)
    if start == target:
        return 0.0
    if target < start:
        f, D = loss, _diffusion(diffusion)
        return mean_passage_time(lambda x: f(-x), lambda x: D(-x), -start, -target)
    pointwise = _pointwise(loss, diffusion)
    return _converged(lambda panels: _passage(_Panels(pointwise, start, target, panels)), float)


def noise_preference(barrier, low_noise, high_noise) -> float:
    """√(D₂/D₁) exp(ΔV(1/D₁ - 1/D₂)): how much likelier is the well of noise D₁ than its mirror image of noise D₂.

    Wells of one shape and depth, barrier ΔV, as both noises become small; D changes from one value to the other near
    the top. For finite noise use `mass_below`.
    """
    d1, d2 = positive("low_noise", low_noise), positive("high_noise", high_noise)
    return float(np.sqrt(d2 / d1) * np.exp(positive("barrier", barrier) * (1 / d1 - 1 / d2)))


class _Panels:
    """S and log D at Gauss nodes of panels that cover (-∞, `end`), with `split` at an edge."""

    def __init__(self, pointwise: Callable, split: float, end: float, panels: int):
        # x = split + scale · sinh u: even panels in u are fine near the wells and reach far out.
        scale = 1.0 if end == np.inf else max(1.0, end - split)
        top = _reach if end == np.inf else np.arcsinh((end - split) / scale)
        behind, ahead = np.linspace(-_reach, 0, panels + 1), np.linspace(0, top, panels + 1)
        edges = np.concatenate([behind, ahead[1:]])
        half = 0.5 * np.diff(edges)[:, None]
        u = 0.5 * (edges[1:] + edges[:-1])[:, None] + half * _nodes
        self.x, self.steps = split + scale * np.sinh(u), half * scale * np.cosh(u)
        self.split = panels
        slope, self.log_d = pointwise(self.x)
        self.s = self.cumulative(slope, origin=panels)

    def cumulative(self, values: Float[np.ndarray, "p n"], origin: int = 0) -> Float[np.ndarray, "p n"]:
        """The integral up to each node from the left edge of the panel `origin`, summed outwards."""
        whole = np.sum(values * self.steps * _weights, axis=1)
        # S is huge far out: differences of sums from the far end would lose it near the wells.
        ahead, behind = np.cumsum(whole[origin:])[:-1], -np.cumsum(whole[:origin][::-1])[::-1]
        before = np.concatenate([behind, [0.0], ahead])
        return before[:, None] + (values * self.steps) @ _partial.T


def _law(panels: _Panels) -> LineLaw:
    logs = -panels.s - panels.log_d
    top = np.max(logs)
    if not max(logs[0, 0] + np.log(panels.steps[0, 0]), logs[-1, -1] + np.log(panels.steps[-1, -1])) < top - _vanished:
        raise ValueError("The invariant law cannot be normalised: its mass does not fall off far out.")
    density = np.exp(logs - top)
    mass = density * panels.steps * _weights
    total = np.sum(mass)
    return LineLaw(panels.x.ravel(), (density / total).ravel(), (mass / total).ravel())


def _passage(panels: _Panels) -> float:
    logs, ahead = -panels.s - panels.log_d, slice(panels.split, None)
    low, high = np.max(logs), np.max(panels.s[ahead])
    if not logs[0, 0] + np.log(panels.steps[0, 0]) < low - _vanished:
        raise ValueError("The mean time is infinite: the mass of the invariant law does not fall off behind the start.")
    behind = panels.cumulative(np.exp(logs - low))
    integral = np.sum(np.exp(panels.s[ahead] - high) * (behind * panels.steps * _weights)[ahead])
    with np.errstate(over="ignore"):
        return float(np.exp(low + high + np.log(integral)))


def _converged(compute: Callable, number: Callable):
    """`compute(panels)` with panels doubled until `number` of it settles."""
    panels, last = _fewest_panels, None
    while panels <= _most_panels:
        found = compute(panels)
        if last is not None and (number(found) == last or abs(number(found) / last - 1) <= _settled):
            return found
        panels, last = 2 * panels, number(found)
    raise ValueError("The quadrature does not settle: the loss or the noise is too rough for it.")


def _pointwise(loss: Callable, diffusion) -> Callable:
    """The function x -> (f'/D, log D) of many points, compiled once."""
    D = _diffusion(diffusion)

    def both(x):
        noise = jnp.reshape(jnp.asarray(D(x)), ())
        return jax.grad(scalar_valued(loss))(x)[0] / noise, jnp.log(noise)

    batched = jax.jit(jax.vmap(both))

    def evaluate(x):
        points = np.pad(x.ravel(), (0, -x.size % _batch), mode="edge").reshape(-1, _batch, 1)
        parts = [batched(jnp.asarray(part)) for part in points]
        slope, log_d = (np.concatenate(p)[: x.size].reshape(x.shape) for p in zip(*parts, strict=True))
        bad = ~(np.isfinite(slope) & np.isfinite(log_d))
        if bad.any():
            raise ValueError(
                "The slope of the loss must be finite and the diffusion positive, but at "
                f"x = {x[bad][0]:.6g} they are not. (Noise proportional to the loss needs a loss that is positive.)"
            )
        return slope, log_d

    return evaluate


def _tame(x):
    """An observable that sees where the mass is and has a mean under every law."""
    return 2 + np.tanh(x) + np.cos(x)


def _diffusion(diffusion) -> Callable:
    if callable(diffusion):
        return diffusion
    value = positive("diffusion", diffusion)
    return lambda x: jnp.asarray(value, x.dtype)


def _partial_integrals(nodes: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """∫_{-1}^{xᵢ} ℓⱼ, for the Lagrange polynomials ℓⱼ of the nodes."""
    legendre = np.polynomial.legendre
    n = len(nodes)
    values = legendre.legvander(nodes, n - 1)
    integrals = np.stack([legendre.legval(nodes, legendre.legint(np.eye(n)[m], lbnd=-1)) for m in range(n)], axis=1)
    return integrals @ np.linalg.inv(values)


_nodes, _weights = np.polynomial.legendre.leggauss(10)
_partial = _partial_integrals(_nodes)

# sinh(30) is 5e12; the mass there must be below e^{-16} of the peak of the density times the length.
_reach, _vanished = 30.0, 16.0

# Agreement of two numbers of panels, the finer of which is then far more exact; fewest and most panels on either side.
# The fewest put nodes at a hundredth of the distance, where they see wells ten times narrower; it costs nothing.
_settled, _fewest_panels, _most_panels = 1e-9, 256, 65536

# Points evaluated at once: one size compiles once.
_batch = 2560
