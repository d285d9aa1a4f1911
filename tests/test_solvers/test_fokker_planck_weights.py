import numpy as np
import pytest

from solvers.fokker_planck.weights import bernoulli, edge_weights

# B(x) = x / (e^x - 1) from 50-digit arithmetic.
_exact = {
    -800.0: 800.0,
    -30.0: 30.00000000000280728689,
    -1.0: 1.581976706869326424385,
    -1e-3: 1.0005000833333319444448,
    -1e-9: 1.0000000005,
    0.0: 1.0,
    1e-12: 0.9999999999995,
    1e-3: 0.9995000833333319444448,
    1.0: 0.5819767068693264243850,
    30.0: 2.8072868906523150768e-12,
    710.0: 3.1781632202293422688e-306,
    800.0: 0.0,
}


def test_bernoulli_is_exact_to_rounding():
    x = np.array(list(_exact))
    exact = np.array(list(_exact.values()))
    np.testing.assert_allclose(bernoulli(x), exact, rtol=1e-14, atol=0)


def test_bernoulli_reflects():
    # B(-x) - B(x) = x and B(-x) = e^x B(x).
    x = np.linspace(-30, 30, 1001)
    np.testing.assert_allclose(bernoulli(-x) - bernoulli(x), x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(bernoulli(-x), np.exp(x) * bernoulli(x), rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-8, 0.5, 0.99, 1.5, 10.0])
def test_weights_balance_at_the_ratio_of_the_edge(scale):
    # Whatever the weight, q_j / q_i = e^Ω carries no current.
    right, left = scale * np.array([1.0, -1.0, 0.3, -0.7]), scale * np.array([0.5, 0.8, -1.0, -0.2])
    out, back = edge_weights(right, left)
    np.testing.assert_allclose(out / back, np.exp(right + left), rtol=1e-14)


def test_unresolved_edges_are_upwind():
    out, back = edge_weights(np.array([500.0, -500.0]), np.array([500.0, -500.0]))
    np.testing.assert_array_equal(out, [1000.0, 0.0])
    np.testing.assert_array_equal(back, [0.0, 1000.0])


def test_a_barrier_in_the_middle_does_not_count_as_resolved():
    # Ω = 0, but the midpoint weight would be e^600.
    out, back = edge_weights(np.array([600.0]), np.array([-600.0]))
    assert out == back == 1.0
