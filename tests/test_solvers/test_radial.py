"""Rotationally symmetric processes in d dimensions, by their radial part, against closed forms."""

import numpy as np
import pytest
from test_solvers.fokker_planck_problems import loss_proportional

from solvers import Grid, fokker_planck


def paraboloid(x):
    return 1 + x @ x


@pytest.mark.parametrize(("d", "kappa", "reach"), [(2, 0.2, 1e4), (3, 0.1, 300.0), (10, 0.05, 100.0)])
@pytest.mark.parametrize("angular", [0, 1, 2, 3])
def test_student_rates(d, kappa, reach, angular):
    l = angular  # noqa: E741
    # f = 1 + |x|², D = κ f: 2n - κ (n (n + d - 2) - l (l + d - 2)), n = l, l + 2, ..., n < 1 + 1/κ - d/2.
    n = np.array([m for m in (l, l + 2, l + 4) if m < 1 + 1 / kappa - d / 2])
    exact = 2 * n - kappa * (n * (n + d - 2) - l * (l + d - 2))
    radial = fokker_planck.radial(loss_proportional(paraboloid, kappa), Grid.half_line(reach, 800, 1.0), d)
    sp = radial.spectrum(l=l, k=len(n))
    np.testing.assert_allclose(sp.rates, exact, rtol=1e-8)
    assert np.all(np.abs(sp.rates - exact) <= sp.error)
    assert sp.threshold == pytest.approx(kappa * ((1 / kappa - (d - 2) / 2) ** 2 + l * (l + d - 2)), rel=1e-6)
