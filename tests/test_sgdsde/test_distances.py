"""Distances between laws: closed forms, error bars that are right, and what noise alone gives."""

import numpy as np
import pytest
from scipy import stats

import sgdsde as sg
from solvers import Density, Grid

_grid = Grid.uniform((-8.0, 8.0, 1600))


def _normal(mean, sd=1.0, grid=_grid):
    mass = np.diff(stats.norm(mean, sd).cdf(grid.edges[0]))
    return Density(grid, mass, 1 - mass.sum())


def test_distances_between_normal_laws():
    c = sg.compare(_normal(0), _normal(0.5))
    assert c.tv == pytest.approx(2 * stats.norm.cdf(0.25) - 1, abs=1e-6)
    assert c.hellinger == pytest.approx(np.sqrt(1 - np.exp(-(0.5**2) / 8)), abs=1e-6)
    assert c.kl == pytest.approx(0.125, abs=1e-5)
    assert c.wasserstein == pytest.approx([0.5], abs=1e-6)
    assert c.sem.tv == c.floor.tv == 0
    assert c.excess == np.inf
    assert str(c) == "tv 0.197, hellinger 0.175, kl 0.125, wasserstein 0.5"


def test_a_law_is_no_distance_from_itself():
    c = sg.compare(_normal(0), _normal(0))
    assert (c.tv, c.kl, c.excess) == (0, 0, 0)
    assert c.hellinger < 1e-7
    assert c.wasserstein == [0]


def test_kl_is_of_q_from_p_and_infinite_where_q_vanishes():
    grid = Grid.uniform((0.0, 2.0, 2))
    p, q = Density(grid, [0.5, 0.5]), Density(grid, [1.0, 0.0])
    assert sg.compare(q, p).kl == pytest.approx(np.log(2))
    assert sg.compare(p, q).kl == np.inf


def test_mass_outside_counts():
    grid = Grid.uniform((0.0, 1.0, 2))
    assert sg.compare(Density(grid, [0.5, 0.5]), Density(grid, [0.4, 0.4], 0.2)).tv == pytest.approx(0.2)


def test_wasserstein_per_axis():
    grid = Grid.uniform((-8.0, 8.0, 200), (-8.0, 8.0, 200))

    def law(m0, m1):
        masses = [np.diff(stats.norm(m).cdf(e)) for m, e in zip((m0, m1), grid.edges, strict=True)]
        mass = np.multiply.outer(*masses)
        return Density(grid, mass / mass.sum())

    assert sg.compare(law(0, 0), law(0.3, -0.7)).wasserstein == pytest.approx([0.3, 0.7], abs=1e-3)


def test_the_finer_law_is_taken_to_the_coarser_grid():
    coarse = _grid.coarsen().coarsen()
    a, b = sg.compare(_normal(0), _normal(0.5, grid=coarse)), sg.compare(_normal(0, grid=coarse), _normal(0.5))
    assert a.tv == pytest.approx(b.tv, abs=1e-12)
    with pytest.raises(ValueError, match="only edges that"):
        sg.compare(_normal(0), _normal(0, grid=Grid.uniform((-8.0, 8.0, 7))))
    with pytest.raises(ValueError, match="equally many axes, but they have 1 and 2"):
        sg.compare(_normal(0), Density.point(Grid.uniform((0.0, 1.0, 2), (0.0, 1.0, 2)), [0.1, 0.1]))


@pytest.mark.slow
def test_error_bars_are_the_spread_over_repetitions():
    grid, random = Grid.uniform((-4.0, 4.0, 20)), np.random.default_rng(0)
    law, other = _normal(0, grid=grid), _normal(0.2, grid=grid)
    runs = [sg.compare(Density.from_samples(grid, random.normal(size=4000)), other) for _ in range(40)]
    for name in ("tv", "hellinger", "kl"):
        spread = np.std([getattr(r, name) for r in runs])
        stated = np.mean([getattr(r.sem, name) for r in runs])
        assert 0.7 < stated / spread < 1.4, name
    assert 0.7 < np.mean([r.sem.wasserstein for r in runs]) / np.std([r.wasserstein for r in runs]) < 1.4
    # Under the law itself, every distance is its floor on average.
    null = [sg.compare(Density.from_samples(grid, random.normal(size=4000)), law) for _ in range(40)]
    for name in ("tv", "hellinger", "kl"):
        ratio = np.mean([getattr(r, name) for r in null]) / np.mean([getattr(r.floor, name) for r in null])
        assert 0.85 < ratio < 1.15, name
    assert 0.8 < np.mean([r.wasserstein for r in null]) / np.mean([r.floor.wasserstein for r in null]) < 1.2
    assert np.mean([abs(r.excess) > 4 for r in null]) == 0
    assert min(r.excess for r in runs) > 4


def test_two_sampled_laws_have_the_noise_of_both():
    grid, random = Grid.uniform((-4.0, 4.0, 20)), np.random.default_rng(1)
    p, q = (Density.from_samples(grid, random.normal(size=4000)) for _ in range(2))
    exact = sg.compare(p, _normal(0, grid=grid))
    both = sg.compare(p, q)
    assert both.floor.tv == pytest.approx(np.sqrt(2) * exact.floor.tv, rel=0.2)
    assert abs(both.excess) < 4
    assert "±" in str(both)
