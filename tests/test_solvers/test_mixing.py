"""R-hat, effective sample sizes and tail indices against closed forms."""

import numpy as np
import pytest

from solvers.mixing import effective_sample_size, rhat, tail_index


def _autoregressive(phi, chains, n, seed):
    """Stationary chains x' = φ x + N(0, 1 - φ²)."""
    rng = np.random.default_rng(seed)
    x = np.empty((chains, n))
    x[:, 0] = rng.normal(size=chains)
    for k in range(1, n):
        x[:, k] = phi * x[:, k - 1] + np.sqrt(1 - phi**2) * rng.normal(size=chains)
    return x


def test_rhat_of_shifted_copies_is_exact():
    # W = 1 by ddof = 1, and the means ±1/2 have variance 1/2: R² = (n - 1)/n + 1/2.
    chain = np.array([-1.0, 1.0, -1.0, 1.0]) * np.sqrt(3 / 4)
    assert rhat(np.stack([chain - 0.5, chain + 0.5])) == pytest.approx(np.sqrt(3 / 4 + 1 / 2), rel=1e-14)


def test_rhat_of_constant_chains():
    assert rhat(np.ones((2, 3))) == 1
    assert rhat(np.array([[1.0, 1.0], [2.0, 2.0]])) == np.inf


def test_rhat_of_autoregressive_chains():
    # E B/n is the variance of a chain's mean and E W is 1 less that. With V = (1/n)(1 + 2 Σ (1 - k/n) φ^k) exactly,
    # R² = (n-1)/n + V/(1 - V) n/n; ddof = 1 turns 1 - V into (1 - V) n/(n-1). Both average over m chains.
    phi, m, n = 0.8, 4000, 50
    k = np.arange(1, n)
    mean_variance = (1 + 2 * np.sum((1 - k / n) * phi**k)) / n
    exact = (n - 1) / n + mean_variance / ((1 - mean_variance) * n / (n - 1))
    found = rhat(_autoregressive(phi, m, n, 1)) ** 2
    # The variance of m means is known to √(2/m), W far better.
    assert abs(found - exact) < 4 * np.sqrt(2 / m) * (exact - (n - 1) / n)


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_effective_sample_size_of_autoregressive_chains(phi):
    m, n = 50, 4000
    found = effective_sample_size(_autoregressive(phi, m, n, 2))
    assert found == pytest.approx(m * n * (1 - phi) / (1 + phi), rel=0.05)


def test_chains_with_other_means_count_little():
    chains = _autoregressive(0.0, 4, 1000, 3)
    alone = effective_sample_size(chains)
    apart = effective_sample_size(chains + 3 * np.arange(4)[:, None])
    assert 3000 < alone < 5000
    assert apart < 10


def test_constant_chains_are_as_good_as_any():
    assert effective_sample_size(np.ones((2, 5))) == 10


def test_hill_of_exact_quantiles():
    # Of x_i = (i / n)^(-1/α) the logarithms above x_k are -log(i/k)/α: their mean is (1/α) (k log k - log k!) / k.
    alpha, n, k = 2.5, 1000, 100
    x = (np.arange(1, n + 1) / n) ** (-1 / alpha)
    inverse = np.mean(np.log((k + 1) / np.arange(1, k + 1))) / alpha
    found, error = tail_index(x, k)
    assert found == pytest.approx(1 / inverse, rel=1e-12)
    assert error == found / 10


def test_hill_of_a_pareto_sample():
    found, error = tail_index(np.random.default_rng(4).pareto(3.0, 100_000) + 1, 2000)
    assert abs(found - 3.0) < 4 * error
    assert error == pytest.approx(3.0 / np.sqrt(2000), rel=0.2)


def test_what_has_no_tail():
    assert tail_index(np.zeros(20), 5)[0] == np.inf
    assert tail_index(np.ones(20), 5)[0] == np.inf
