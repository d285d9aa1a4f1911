"""How well samples represent a law: R-hat, effective sample sizes, and the index of heavy tails."""

import numpy as np
from jaxtyping import Float, Real


def rhat(chains: Real[np.ndarray, "m n"]) -> float:
    """Gelman and Rubin's R-hat of m > 1 chains of n > 1 samples: 1 where they agree, above where they do not.

    R-hat² = ((n - 1)/n W + B/n) / W with W the mean of the variances in chains and B/n the variance of their means.
    For independent stationary chains with autocorrelations φ^k it is close to 1 + ((1 + φ)/(1 - φ) - 1)/n. Chains that
    are equal and constant have R-hat 1; different constants have infinity.

    Source: Gelman and Rubin, "Inference from iterative simulation using multiple sequences", Statistical Science 7,
    1992.
    """
    within, total = _variances(np.asarray(chains, np.float64))
    if within == 0:
        return 1.0 if total == 0 else np.inf
    return float(np.sqrt(total / within))


def effective_sample_size(chains: Real[np.ndarray, "m n"]) -> float:
    """How many independent samples have a mean as good as that of m chains of n > 3 samples.

    m n / (1 + 2 Σ ρ_k) with autocorrelations ρ_k taken over all chains together, so that chains with different means
    count little, and summed over pairs of lags for as long as these sums are positive and fall (Geyer's initial
    monotone sequence). For autocorrelations φ^k it is m n (1 - φ)/(1 + φ). At most m n log10(m n).

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization",
    Bayesian Analysis 16, 2021, equations 10 to 13 (without rank normalisation).
    """
    chains = np.asarray(chains, np.float64)
    m, n = chains.shape
    within, total = _variances(chains)
    if total == 0:
        return float(m * n)
    correlation = 1 - (within - _autocovariance(chains).mean(axis=0) * n / (n - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0]] if negative.size else pairs)
    time = max(2 * pairs.sum() - 1, 1 / np.log10(max(m * n, 10)))
    return float(m * n / time)


def tail_index(values: Real[np.ndarray, " n"], count: int) -> tuple[float, float]:
    """Hill's estimate of the index α of a tail P(X > x) ~ x^-α from the `count` largest values, with a standard error.

    1/α is the mean of log(x_i / x_min) over them, x_min the next largest value; the error is α/√count. For light tails
    it grows with the sample: moments of order above α do not exist, but a large value says only that none is missing.
    Values that are not positive have no tail: infinite.

    Source: Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3,
    1975.
    """
    largest = np.sort(np.asarray(values, np.float64))[-count - 1 :]
    if largest[0] <= 0:
        return np.inf, np.nan
    mean = float(np.mean(np.log(largest[1:] / largest[0])))
    return (np.inf, np.nan) if mean == 0 else (1 / mean, 1 / mean / np.sqrt(count))


def _variances(chains: Float[np.ndarray, "m n"]) -> tuple[float, float]:
    """W, the mean variance in chains, and the variance over all chains that it and their means lead to."""
    n = chains.shape[1]
    within = float(chains.var(axis=1, ddof=1).mean())
    return within, (n - 1) / n * within + (float(chains.mean(axis=1).var(ddof=1)) if len(chains) > 1 else 0.0)


def _autocovariance(chains: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m n"]:
    """Of each chain at all lags, each sum divided by n, by Fourier transforms."""
    n = chains.shape[1]
    deviation = chains - chains.mean(axis=1, keepdims=True)
    transform = np.fft.rfft(deviation, 2 * n, axis=1)
    return np.fft.irfft(np.abs(transform) ** 2, 2 * n, axis=1)[:, :n] / n
