"""The factors that decide where SGD rests: the curvature H and the gradient covariance C of a loss on data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._classes import classes_of, predictions
from ._finite_sum import AbstractFiniteSum
from ._measured import estimated, exactly
from ._spectra import Estimate as Estimate, Spectrum as Spectrum
from .model_loss import ModelLoss
from .theory._checked import rates

# Matrices of up to so many parameters are written down.
_dense = 1000


class NoiseReport(eqx.Module):
    """The outcome of `noise_report`. Numbers that were estimated have a standard error, `sem`; it is 0 where exact.

    `count` and `parameters` are N and d. `H` and `C` are a `Spectrum` each: trace, Frobenius norm, largest eigenvalues
    and spectral density of the Hessian and of the covariance of the gradients of single examples.

    `gauss_newton` is tr G, G = (1/N) Σ J_iᵀ ∂²l_i/∂z² J_i with the outputs z and J_i = ∂z_i/∂x, and `fisher` is tr F,
    F = (1/N) Σ_i E ∇l_i ∇l_iᵀ where the label is drawn from the model's own law p(y) ∝ exp(-l(y)). The expectation is
    exact: for classifiers over all classes, and for a squared loss over the normal law of variance 1, for which F = G.
    F = G for the cross-entropy of logits too. `empirical_fisher` is the trace of (1/N) Σ ∇l_i ∇l_iᵀ = C + ∇f∇fᵀ. None
    where the loss knows no outputs, or no law.

    `trace_product` is tr(HC), and `alignment` the cosine tr(HC)/(|H||C|) in the Frobenius norm: 1 for C ∝ H.
    `overlap` is tr(P_H P_C)/k with the projections on the eigenspaces of the k = `overlap_dimension` largest
    eigenvalues: 1 if these are the same space, k/d for random ones, NaN if C = 0.

    `accuracy` is the share of examples whose label is the class of least loss. `mean_odds` is the mean of p/(1 - p)
    with the model's probability p of the right class; the surest examples dominate it, so `typical_odds` is besides
    the geometric mean, the exponential of the mean log odds. None if the loss is not of classes, or has no law.

    `held_out` is the same report on other examples.
    """

    count: int
    parameters: int
    loss: float
    squared_gradient: float
    H: Spectrum
    C: Spectrum
    trace_product: Estimate
    gauss_newton: Estimate | None
    fisher: Estimate | None
    empirical_fisher: Estimate
    alignment: Estimate
    overlap: float
    overlap_dimension: int
    accuracy: float | None
    mean_odds: float | None
    typical_odds: float | None
    held_out: "NoiseReport | None"

    def wang_excess_loss(self, learning_rate, batch_size=1) -> Estimate:
        """E f - min f = η tr C/(4B) in the stationary state near a minimum, to leading order in η, whatever H is.

        Source: Wang, arXiv:1711.09514, (4.45). Batches with replacement; without it, (N-B)/(N-1) of that.
        """
        return self.C.trace * (rates(learning_rate, batch_size) / (4 * batch_size))

    def jastrzebski_excess_loss(self, learning_rate, batch_size=1) -> Estimate:
        """E f - min f = η tr H/(4B): the same where C = H, and only there.

        Source: Jastrzębski et al., *Three factors influencing minima in SGD*, 2018, (9).
        """
        return self.H.trace * (rates(learning_rate, batch_size) / (4 * batch_size))

    def wang_squared_gradient(self, learning_rate, batch_size=1) -> Estimate:
        """E |∇f|² = η tr(HC)/(2B) in the stationary state, to leading order in η: H and C need not commute.

        Source: Wang, arXiv:1711.09514, (4.49).
        """
        return self.trace_product * (rates(learning_rate, batch_size) / (2 * batch_size))

    def plot(self, axes=None) -> np.ndarray:
        """The spectral densities of H and of C, on two axes."""
        from .plots import factors

        return factors.spectral_densities(self, axes)

    def __str__(self) -> str:
        reports = [self] if self.held_out is None else [self, self.held_out]
        columns = [_column(report) for report in reports]
        lines = [["", *["training", "held out"][: len(reports)]]]
        lines += [[name, *[column[name] for column in columns]] for name in columns[0] if any(c[name] for c in columns)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(row.rstrip() for row in rows)


def noise_report(
    loss: AbstractFiniteSum,
    x: Any,
    *,
    split: Any = None,
    top: int = 10,
    probes: int = 16,
    runs: int = 4,
    steps: int = 40,
    exact: bool | None = None,
    key: Any = 0,
) -> NoiseReport:
    """Curvature and gradient noise of a finite sum at the point x, what they predict for SGD, and how the model does.

    C = (1/N) Σ_i (∇l_i - ∇f)(∇l_i - ∇f)ᵀ is the covariance of the gradient of one example, and H the Hessian of f.
    The predictions hold near a minimum: `report.wang_excess_loss(learning_rate, batch_size)` and its neighbours.

    `split` are other examples, such as those held out: another finite sum of the same x, or for a loss of
    `losses.from_model` the data, as in `loss.on(data)`. All is computed for both.

    `top` eigenvalues and eigenvectors are kept. Up to 1,000 parameters, or with `exact=True`, matrices are written
    down and all is exact to rounding. Otherwise products with vectors do:

    - tr C is exact in any case, from the gradients of single examples, one after the other;
    - eigenvalues are those of one Lanczos run of `steps` steps;
    - other traces and norms are exact on the span of the eigenvectors found, and Monte Carlo estimates with `probes`
      random vectors of signs on its complement (Hutchinson's estimator, deflated as in Hutch++);
    - densities are Lanczos quadrature: the eigenvalues found, and `runs` runs from random vectors for the others.

    Memory is some `steps` + 4 `top` vectors of d numbers beside a gradient, and time `steps` (`runs` + 1) products with
    each matrix and 2 `top` + `probes` with all four, of two to four gradients each. For networks of rectifiers (ReLU)
    without weight decay tr H = tr G almost everywhere, and the estimate of tr G has by far the smaller error. Results
    depend on `key`, a `jax.random.key` or a seed, unless exact.

    A weight decay counts in f, H and every ∇l_i, so that it is not in C, nor in G and F.

    `TypeError` if the loss is no finite sum; `ValueError` for points or numbers that do not fit.
    """
    if not isinstance(loss, AbstractFiniteSum):
        raise TypeError(f"`loss` must be a finite sum, such as `losses.from_model(...)`, but got {loss!r}.")
    x = point(x)
    for name, value, least in (("top", top, 1), ("probes", probes, 2), ("runs", runs, 1), ("steps", steps, 2)):
        if isinstance(value, bool) or int(value) != value or value < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value}.")
    value, square = (float(number) for number in _height(loss, x))
    if not np.isfinite(value) or not np.isfinite(square):
        raise ValueError(f"`loss` must be finite at `x` with its gradient, but f = {value} and |∇f|² = {square} there.")
    held_out = None
    if split is not None:
        held_out = noise_report(
            _other(loss, split), x, top=top, probes=probes, runs=runs, steps=steps, exact=exact, key=key
        )
    law, behaviour = _behaviour(loss, x)
    if exact or (exact is None and x.size <= _dense):
        found = exactly(loss, x, law, min(top, x.size))
    else:
        key = jax.random.key(key) if isinstance(key, int) else key
        found = estimated(loss, x, law, min(top, x.size), probes, runs, min(steps, x.size), key)
    return NoiseReport(
        count=loss.count,
        parameters=x.size,
        loss=value,
        squared_gradient=square,
        empirical_fisher=Estimate(found["C"].trace.value + square),
        held_out=held_out,
        **behaviour,
        **found,
    )


def point(x: Any) -> Float[Array, " d"]:
    """`x` as one point of real numbers, in its own dtype; `ValueError` or `TypeError` if it is none."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`x` must be one point of real floating-point numbers, but has dtype {x.dtype}.")
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"`x` must be one point of shape (d,), but has shape {x.shape}. See `loss.ravel(model)`.")
    if not bool(jnp.all(jnp.isfinite(x))):
        raise ValueError(f"`x` must be finite, but has {int(jnp.sum(~jnp.isfinite(x)))} entries that are not.")
    return x


def _behaviour(loss: AbstractFiniteSum, x: Float[Array, " d"]) -> tuple[Array | None, dict[str, float | None]]:
    """The classes, if exp(-l) is a law of them, and how the model does on its data."""
    nothing: dict[str, float | None] = {"accuracy": None, "mean_odds": None, "typical_odds": None}
    classes = classes_of(loss, x)
    if classes is None or not isinstance(loss, ModelLoss):
        return None, nothing
    guessed = predictions(loss, classes, x)
    if guessed.log_odds is None:
        return None, {**nothing, "accuracy": guessed.accuracy}
    with np.errstate(over="ignore"):
        mean = float(np.mean(np.exp(guessed.log_odds)))
        typical = float(np.exp(np.mean(guessed.log_odds)))
    return classes, {"accuracy": guessed.accuracy, "mean_odds": mean, "typical_odds": typical}


def _other(loss: AbstractFiniteSum, split: Any) -> AbstractFiniteSum:
    if isinstance(split, AbstractFiniteSum):
        return split
    if isinstance(loss, ModelLoss):
        return loss.on(split)
    raise TypeError(
        f"`split` must be a finite sum on the other examples, such as another `{type(loss).__name__}`, but got "
        f"{type(split).__name__}. Data alone will do for losses of `losses.from_model`."
    )


@eqx.filter_jit
def _height(loss: AbstractFiniteSum, x: Float[Array, " d"]):
    value, slope = jax.value_and_grad(loss)(x)
    return value, slope @ slope


def _column(report: NoiseReport) -> dict[str, str]:
    """What the table says, by the name of its row."""
    few = 5

    def many(values):
        return ", ".join(f"{value:.4g}" for value in values[:few])

    def maybe(value):
        return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)

    k = report.overlap_dimension
    return {
        "examples N": str(report.count),
        "parameters d": str(report.parameters),
        "f": maybe(report.loss),
        "|∇f|²": maybe(report.squared_gradient),
        "tr H": str(report.H.trace),
        "tr C": str(report.C.trace),
        "tr G, Gauss-Newton": maybe(report.gauss_newton),
        "tr F, Fisher": maybe(report.fisher),
        "tr (C + ∇f∇fᵀ), empirical Fisher": str(report.empirical_fisher),
        "|H|": str(report.H.norm),
        "|C|": str(report.C.norm),
        f"H, largest {min(few, len(report.H.top))} of {len(report.H.top)}": many(report.H.top),
        f"C, largest {min(few, len(report.C.top))} of {len(report.C.top)}": many(report.C.top),
        "H, lowest": f"{report.H.lowest:.4g}",
        "alignment tr(HC)/(|H||C|)": str(report.alignment),
        f"overlap of the {k} largest": f"{report.overlap:.3g}",
        "E f - min f over η/B, Wang": str(report.wang_excess_loss(1.0)),
        "the same if C = H, Jastrzębski": str(report.jastrzebski_excess_loss(1.0)),
        "E |∇f|² over η/B, Wang": str(report.wang_squared_gradient(1.0)),
        "accuracy": maybe(report.accuracy),
        "mean odds": maybe(report.mean_odds),
        "typical odds": maybe(report.typical_odds),
    }
