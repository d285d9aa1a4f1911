"""H, C, and the traces of G and F of a finite sum: from matrices written down, or from products with vectors."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import _curvature
from ._spectra import Estimate, Spectrum, exact_spectrum, jackknifed, lanczos, signs
from .model_loss import ModelLoss


def exactly(loss: Any, x: Float[Array, " d"], law: Array | None, top: int) -> dict[str, Any]:
    """The fields of a `NoiseReport` that are known of H, C, G and F, from these matrices."""
    H, C, *diagonals = (np.asarray(part, np.float64) for part in _matrices(loss, law, x))
    (curvature, U), (noise, V) = exact_spectrum(H, top), exact_spectrum(C, top)
    inner = float(np.sum(H * C))
    cosine = Estimate(_cosine(inner, curvature.norm.value, noise.norm.value))
    traces = [Estimate(inner), *[Estimate(float(np.sum(diagonal))) for diagonal in diagonals]]
    return _found(loss, curvature, noise, U, V, cosine, traces)


def estimated(
    loss: Any, x: Float[Array, " d"], law: Array | None, top: int, probes: int, runs: int, steps: int, key: Any
) -> dict[str, Any]:
    """The same from products with vectors."""
    keys = jax.random.split(key, probes + runs + 1)
    H, U = _lanczos_spectrum(_curvature.hessian_product, loss, x, top, steps, keys[: runs + 1])
    C, V = _lanczos_spectrum(_curvature.covariance_product, loss, x, top, steps, keys[: runs + 1])
    # Columns that both spaces share leave arbitrary ones behind, which do no harm.
    Q = jnp.asarray(np.linalg.qr(np.concatenate([U, V], axis=1))[0])
    base = np.sum([_forms(loss, law, x, q) for q in Q.T], axis=0)
    probed = [signs(k, x) for k in keys[runs + 1 :]]
    samples = np.stack([_forms(loss, law, x, v - Q @ (Q.T @ v)) for v in probed])

    def estimate(function):
        return jackknifed(function, base, samples)

    squares = np.asarray(_squares(loss, x), np.float64)
    curvature = Spectrum(estimate(lambda s: s[0]), estimate(lambda s: np.sqrt(s[1])), *H)
    noise = Spectrum(Estimate(float(np.mean(squares))), estimate(lambda s: np.sqrt(s[2])), *C)
    cosine = estimate(lambda s: _cosine(s[3], np.sqrt(s[1]), np.sqrt(s[2])))
    traces = [estimate(lambda s, k=k: s[k]) for k in (3, 4, 5)]
    return _found(loss, curvature, noise, U.astype(np.float64), V.astype(np.float64), cosine, traces)


def _lanczos_spectrum(product: Callable, loss: Any, x: Float[Array, " d"], top: int, steps: int, keys: Any):
    """What follows the trace and the norm in a `Spectrum`, and the eigenvectors of the largest eigenvalues."""
    away = jnp.zeros((x.size, top), x.dtype)
    first = lanczos(product, (loss, x), signs(keys[0], x), away, steps)
    values, errors, vectors = first.top(top)
    lowest = float(first.quadrature()[0].min())
    # Its basis is the largest thing in memory.
    del first
    away = away.at[:, : vectors.shape[1]].set(vectors)
    measures = [lanczos(product, (loss, x), signs(k, x), away, steps).quadrature() for k in keys[1:]]
    return (values, errors, lowest, *_density(values, measures, x.size)), np.asarray(vectors)


def _density(values: np.ndarray, measures: list, d: int) -> tuple[np.ndarray, np.ndarray]:
    # Runs may end early: points without weight fill up.
    longest = max(len(nodes) for nodes, _ in measures)
    share = 1 - len(values) / d
    nodes = [np.concatenate([values, np.pad(nodes, (0, longest - len(nodes)))]) for nodes, _ in measures]
    rest = [np.pad(share * weights, (0, longest - len(weights))) for _, weights in measures]
    return np.stack(nodes), np.stack([np.concatenate([np.full(len(values), 1 / d), weights]) for weights in rest])


def _found(loss: Any, curvature: Spectrum, noise: Spectrum, U, V, cosine: Estimate, traces: list) -> dict[str, Any]:
    # C has the rank N - 1 at most.
    k = min(U.shape[1], V.shape[1], loss.count - 1)
    overlap = float(np.sum((U[:, :k].T @ V[:, :k]) ** 2)) / k if k and noise.trace.value > 0 else np.nan
    product, *models = traces
    gauss_newton, fisher = (trace if np.isfinite(trace.value) else None for trace in models)
    return {
        "H": curvature,
        "C": noise,
        "trace_product": product,
        "gauss_newton": gauss_newton,
        "fisher": fisher,
        "alignment": cosine,
        "overlap": overlap,
        "overlap_dimension": k,
    }


def _cosine(inner: float, *norms: float) -> float:
    return inner / math.prod(norms) if math.prod(norms) > 0 else np.nan


@eqx.filter_jit
def _squares(loss: Any, x: Float[Array, " d"]) -> Float[Array, " N"]:
    return _curvature.centred_squares(loss, x)


@eqx.filter_jit
def _matrices(loss: Any, law: Array | None, x: Float[Array, " d"]):
    """H, C, and the diagonals of G and F."""

    def column(j):
        v = jnp.zeros_like(x).at[j].set(1)
        products = (_curvature.hessian_product(loss, x, v), _curvature.covariance_product(loss, x, v))
        return (*products, *_models_forms(loss, law, x, v))

    return _curvature.for_each(column, x.size, _curvature.columns_at_once)


def _forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]) -> Float[np.ndarray, "6"]:
    return np.asarray(_quadratic_forms(loss, law, x, v), np.float64)


@eqx.filter_jit
def _quadratic_forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]):
    """vᵀMv for M = H, H², C², HC, G and F."""
    Hv, Cv = _curvature.hessian_product(loss, x, v), _curvature.covariance_product(loss, x, v)
    return jnp.stack([v @ Hv, Hv @ Hv, Cv @ Cv, Hv @ Cv, *_models_forms(loss, law, x, v)])


def _models_forms(loss: Any, law: Array | None, x: Float[Array, " d"], v: Float[Array, " d"]) -> tuple[Array, Array]:
    """vᵀGv and vᵀFv, NaN where there is none."""
    unknown = jnp.full((), jnp.nan, x.dtype)
    if not _curvature.has_outputs(loss):
        return unknown, unknown
    G = v @ _curvature.gauss_newton_product(loss, x, v)
    if not isinstance(loss, ModelLoss):
        return G, G
    return G, unknown if law is None else v @ _curvature.fisher_product(loss, law, x, v)
