"""The energy distance against its closed form; its test keeps the level and has the power that it says."""

import numpy as np
import pytest
from scipy import stats

from sgdsde.energy import disjoint_halves, distances, energy_test, power, random_halves


def test_distance_of_two_normal_laws():
    # E|N(δ, s²)| = s √(2/π) exp(-δ²/2s²) + δ erf(δ/(s√2)), in units of the pooled deviation √(1 + δ²/4).
    delta, n, rng = 0.8, 2000, np.random.default_rng(0)
    found = energy_test(rng.normal(size=n), delta + rng.normal(size=n), permutations=9)
    across = 2 / np.sqrt(np.pi) * np.exp(-(delta**2) / 4) + delta * (2 * stats.norm.cdf(delta / np.sqrt(2)) - 1)
    expected = (2 * across - 4 / np.sqrt(np.pi)) / np.sqrt(1 + delta**2 / 4)
    assert abs(found.distance - expected) < 4 * found.sem
    assert 0.02 < found.sem / expected < 0.08
    # The standard error is that of repetitions.
    repeated = [energy_test(rng.normal(size=50), delta + rng.normal(size=50), permutations=1) for _ in range(400)]
    spread = np.std([r.distance for r in repeated])
    assert abs(np.mean([r.sem for r in repeated]) / spread - 1) < 0.15
    # No bias where the laws are the same.
    null = np.array(
        [energy_test(rng.normal(size=20), rng.normal(size=30), permutations=1).distance for _ in range(400)]
    )
    assert abs(null.mean()) < 4 * null.std() / 20


def test_p_values_are_uniform_under_the_null():
    rng, law = np.random.default_rng(1), np.array([[1.0, 0.5], [0.0, 2.0]])
    p = []
    for k in range(600):
        both = rng.standard_t(3, size=(30, 2)) @ law
        p.append(energy_test(both[:15], both[15:], permutations=19, key=k).p)
    counts = np.bincount(np.round(20 * np.array(p)).astype(int) - 1, minlength=20)
    # The p-values are the 20 multiples of 1/20, all equally likely.
    assert stats.chisquare(counts).pvalue > 1e-3


def test_ties_make_the_test_cautious_and_not_wrong():
    # Accuracies, say: few different values.
    rng = np.random.default_rng(2)
    p = np.array([energy_test(*rng.integers(0, 2, (2, 12)), permutations=19, key=k).p for k in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) < level + 4 * np.sqrt(level * (1 - level) / 400)
    assert energy_test(np.ones(9), np.ones(9)).p == 1


def test_power_is_the_rate_of_rejection_of_fresh_samples():
    rng, n, delta = np.random.default_rng(3), 100, 0.6
    # Half-samples of one pair are alike: the mean over several pairs is what has no bias.
    estimates = []
    for _ in range(6):
        pooled = distances(rng.normal(size=(n, 1)), delta + rng.normal(size=(n, 1)))
        estimates.append(power(pooled, random_halves(n, n), 0.05, rng))
    fresh = np.mean(
        [
            energy_test(rng.normal(size=50), delta + rng.normal(size=50), permutations=99, key=k).p <= 0.05
            for k in range(300)
        ]
    )
    error = np.hypot(np.std(estimates) / np.sqrt(6), np.sqrt(fresh * (1 - fresh) / 300))
    assert abs(np.mean(estimates) - fresh) < 4 * error
    # Somewhat below that of the best test for normal laws.
    best = 1 - stats.nct.cdf(stats.t.ppf(0.975, 98), 98, delta * np.sqrt(25))
    assert best - 0.12 < fresh < best + 4 * np.sqrt(best * (1 - best) / 300)


def test_power_of_a_shift_and_of_none():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 1))
    assert power(distances(x, x + 0.6), disjoint_halves(400), 0.05, rng) > 0.99
    # No shift: two disjoint halves of one sample have one law, and the level is all there is.
    assert power(distances(x, x), disjoint_halves(400), 0.05, rng) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.usefixtures("unchecked")
def test_messages():
    for arguments, options, message in [
        ((np.ones((5, 2)), np.ones((5, 3))), {}, "equally many components"),
        ((np.ones(3), np.ones(5)), {}, "`x` must be at least 4"),
        ((np.ones(5), np.full(5, np.nan)), {}, "`y` must be finite, but 5"),
        ((np.ones(5), np.ones(5)), {"permutations": 0}, "`permutations`"),
    ]:
        with pytest.raises(ValueError, match=message):
            energy_test(*arguments, **options)
