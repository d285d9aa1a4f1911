"""The factors that decide where SGD rests: the curvature H and the gradient covariance C of a loss on data."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _curvature
from ._classes import classes_of, predictions
from ._finite_sum import AbstractFiniteSum
from ._spectra import Estimate as Estimate, Spectrum as Spectrum, exact_spectrum, jackknifed, lanczos, signs
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

    `alignment` is the cosine tr(HC)/(|H||C|) in the Frobenius norm: 1 for C ∝ H. `overlap` is tr(P_H P_C)/k with the
    projections on the eigenspaces of the k = `overlap_dimension` largest eigenvalues: 1 if these are the same space,
    k/d for random ones, NaN if C = 0.

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

        Source: Wang, arXiv:1711.09514, (4.49). The standard error is that of the alignment alone.
        """
        norms = self.H.norm.value * self.C.norm.value
        return self.alignment * (norms * rates(learning_rate, batch_size) / (2 * batch_size))

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

    Memory is `steps` + 2 `top` vectors of d numbers beside a gradient, and time some `steps` (`runs` + 1) products with
    each matrix, of about four gradients each. Results depend on `key`, a `jax.random.key` or a seed, unless exact.

    A weight decay counts in f, H and every ∇l_i, so that it is not in C, nor in G and F.

    `TypeError` if the loss is no finite sum; `ValueError` for points or numbers that do not fit.
    """
    if not isinstance(loss, AbstractFiniteSum):
        raise TypeError(f"`loss` must be a finite sum, such as `losses.from_model(...)`, but got {loss!r}.")
    x = point(x)
    for name, value, least in (("top", top, 1), ("probes", probes, 2), ("runs", runs, 1), ("steps", steps, 2)):
        if isinstance(value, bool) or int(value) != value or value < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, but got {value}.")
    held_out = None
    if split is not None:
        held_out = noise_report(
            _other(loss, split), x, top=top, probes=probes, runs=runs, steps=steps, exact=exact, key=key
        )
    classes = classes_of(loss, x)
    guessed = None if classes is None else predictions(loss, classes, x)
    lawful = guessed is not None and guessed.log_odds is not None
    law = classes if lawful else None
    key = jax.random.key(key) if isinstance(key, int) else key
    if exact or (exact is None and x.size <= _dense):
        found = _exactly(loss, x, law, min(top, x.size))
    else:
        found = _estimated(loss, x, law, min(top, x.size), probes, runs, min(steps, x.size), key)
    value, square = (float(number) for number in _height(loss, x))
    odds = guessed.log_odds if lawful else None
    with np.errstate(over="ignore"):
        mean_odds = None if odds is None else float(np.mean(np.exp(odds)))
        typical_odds = None if odds is None else float(np.exp(np.mean(odds)))
    return NoiseReport(
        count=loss.count,
        parameters=x.size,
        loss=value,
        squared_gradient=square,
        empirical_fisher=Estimate(found["C"].trace.value + square, found["C"].trace.sem),
        accuracy=None if guessed is None else guessed.accuracy,
        mean_odds=mean_odds,
        typical_odds=typical_odds,
        held_out=held_out,
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


def _other(loss: AbstractFiniteSum, split: Any) -> AbstractFiniteSum:
    if isinstance(split, AbstractFiniteSum):
        return split
    if isinstance(loss, ModelLoss):
        return loss.on(split)
    raise TypeError(
        f"`split` must be a finite sum on the other examples, such as another `{type(loss).__name__}`, but got "
        f"{type(split).__name__}. Data alone will do for losses of `losses.from_model`."
    )


def _exactly(loss: Any, x: Float[Array, " d"], law: Array | None, top: int) -> dict[str, Any]:
    H, C, *diagonals = (np.asarray(part, np.float64) for part in _matrices(loss, law, x))
    (curvature, U), (noise, V) = exact_spectrum(H, top), exact_spectrum(C, top)
    inner = float(np.sum(H * C))
    traces = [Estimate(float(np.sum(diagonal))) for diagonal in diagonals]
    return _found(loss, curvature, noise, U, V, Estimate(_cosine(inner, curvature, noise)), traces)


def _estimated(
    loss: Any, x: Float[Array, " d"], law: Array | None, top: int, probes: int, runs: int, steps: int, key: Any
) -> dict[str, Any]:
    keys = jax.random.split(key, probes + runs + 1)
    nothing = jnp.zeros((x.size, top), x.dtype)
    ends, spaces, densities = [], [], []
    for product in (_curvature.hessian_product, _curvature.covariance_product):
        krylov = lanczos(product, (loss, x), signs(keys[0], x), nothing, steps)
        values, errors, vectors = krylov.top(top)
        ends.append((values, errors, krylov.quadrature()[0].min()))
        spaces.append(vectors)
        away = nothing.at[:, : vectors.shape[1]].set(vectors)
        measures = [lanczos(product, (loss, x), signs(k, x), away, steps).quadrature() for k in keys[1 : runs + 1]]
        densities.append(_density(values, measures, x.size))
    both = np.linalg.qr(np.concatenate(spaces, axis=1))[0]
    Q = jnp.asarray(both, x.dtype)
    base = sum((_forms(loss, law, x, q) for q in Q.T), start=np.zeros(5 + 2))
    vectors = [signs(k, x) for k in keys[runs + 1 :]]
    samples = np.stack([_forms(loss, law, x, v - Q @ (Q.T @ v)) for v in vectors])
    return _summary(loss, x, ends, spaces, densities, base, samples)


def _density(values: np.ndarray, measures: list, d: int) -> tuple[np.ndarray, np.ndarray]:
    # Ends of different runs may differ: points without weight fill up.
    rest = 1 - len(values) / d
    longest = max(len(nodes) for nodes, _ in measures)
    nodes = [np.concatenate([values, np.pad(nodes, (0, longest - len(nodes)))]) for nodes, _ in measures]
    weights = [
        np.concatenate([np.full(len(values), 1 / d), np.pad(rest * weights, (0, longest - len(weights)))])
        for _, weights in measures
    ]
    return np.stack(nodes), np.stack(weights)


def _summary(loss: Any, x: Any, ends: list, spaces: list, densities: list, base: Any, samples: Any) -> dict[str, Any]:
    exact = Estimate(float(np.mean(np.asarray(_squares(loss, x), np.float64))))
    traces = [jackknifed(lambda s, k=k: s[k], base, samples) for k in range(7)]
    spectra = []
    for k, ((values, errors, lowest), (nodes, weights)) in enumerate(zip(ends, densities, strict=True)):
        norm = jackknifed(lambda s, k=k: np.sqrt(s[2 + k]), base, samples)
        trace = exact if k == 1 else traces[0]
        spectra.append(Spectrum(trace, norm, values, errors, float(lowest), nodes, weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = jackknifed(lambda s: s[4] / np.sqrt(s[2] * s[3]), base, samples)
    U, V = (np.asarray(space, np.float64) for space in spaces)
    return _found(loss, spectra[0], spectra[1], U, V, cosine, traces[5:])


def _found(loss: Any, curvature: Spectrum, noise: Spectrum, U, V, cosine: Estimate, traces: list) -> dict[str, Any]:
    # C has the rank N - 1 at most.
    k = min(U.shape[1], V.shape[1], loss.count - 1)
    overlap = float(np.sum((U[:, :k].T @ V[:, :k]) ** 2)) / k if k and noise.trace.value > 0 else np.nan
    known = [trace if np.isfinite(trace.value) else None for trace in traces]
    return {
        "H": curvature,
        "C": noise,
        "gauss_newton": known[0],
        "fisher": known[1],
        "alignment": cosine,
        "overlap": overlap,
        "overlap_dimension": k,
    }


def _cosine(inner: float, curvature: Spectrum, noise: Spectrum) -> float:
    norms = curvature.norm.value * noise.norm.value
    return inner / norms if norms > 0 else np.nan


@eqx.filter_jit
def _height(loss: AbstractFiniteSum, x: Float[Array, " d"]):
    value, slope = jax.value_and_grad(loss)(x)
    return value, slope @ slope


@eqx.filter_jit
def _squares(loss: AbstractFiniteSum, x: Float[Array, " d"]) -> Float[Array, " N"]:
    return _curvature.centred_squares(loss, x)


@eqx.filter_jit
def _matrices(loss: Any, law: Array | None, x: Float[Array, " d"]):
    """H, C, and the diagonals of G and F."""

    def column(j):
        v = jnp.zeros_like(x).at[j].set(1)
        products = (_curvature.hessian_product(loss, x, v), _curvature.covariance_product(loss, x, v))
        return (*products, *_models_forms(loss, law, x, v))

    return _curvature.for_each(column, x.size, x.size)


def _forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[np.ndarray, "7"]:
    return np.asarray(_quadratic_forms(loss, law, x, v), np.float64)


@eqx.filter_jit
def _quadratic_forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]):
    """vᵀMv for M = H, C, H², C², HC, G and F."""
    Hv, Cv = _curvature.hessian_product(loss, x, v), _curvature.covariance_product(loss, x, v)
    return jnp.stack([v @ Hv, v @ Cv, Hv @ Hv, Cv @ Cv, Hv @ Cv, *_models_forms(loss, law, x, v)])


def _models_forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]) -> tuple[Array, Array]:
    """vᵀGv and vᵀFv, NaN where there is none."""
    unknown = jnp.full((), jnp.nan, x.dtype)
    if not _curvature.has_outputs(loss):
        return unknown, unknown
    G = v @ _curvature.gauss_newton_product(loss, x, v)
    if not isinstance(loss, ModelLoss):
        return G, G
    return G, unknown if law is None else v @ _curvature.fisher_product(loss, law, x, v)


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
