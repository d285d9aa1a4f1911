"""The closed forms of the Student diffusion, against numbers computed with 30 digits and against each other."""

import numpy as np
import pytest
from scipy.integrate import quad

from sgdsde.theory import student


def test_one_dimension():
    np.testing.assert_allclose(
        student.pdf(np.array([[0.0], [1.0], [3.0]]), 0.5),
        [0.8488263631567752, 0.1061032953945969, 0.0008488263631567752],
        rtol=1e-13,
    )
    np.testing.assert_allclose(student.pdf(np.zeros(1), 0.2, scale=0.5), 2.586899392477791, rtol=1e-13)
    np.testing.assert_allclose(
        student.outside_ball([3, 10], 0.5), [0.0011144375415074218, 3.323665436025205e-06], rtol=1e-12
    )
    np.testing.assert_allclose(student.outside_ball(10, 0.2, scale=0.5), 1.1338393116044727e-15, rtol=1e-12)
    np.testing.assert_allclose(2 * student.cdf(-3.0, 0.5), 0.0011144375415074218, rtol=1e-12)
    np.testing.assert_allclose(2 * student.cdf(-3.0, 3.0), 0.0804936052546332, rtol=1e-12)
    np.testing.assert_allclose(student.moment(1, 0.5), 0.4244131815783876, rtol=1e-13)
    np.testing.assert_allclose(student.moment(4, 0.25), 0.08571428571428572, rtol=1e-13)
    np.testing.assert_allclose(student.moment(2, 0.2, scale=0.5), 0.027777777777777776, rtol=1e-13)
    assert student.moment(4, 2 / 3) == np.inf


def test_more_dimensions():
    np.testing.assert_allclose(student.pdf(np.zeros(2), 0.2), 1.5915494309189533, rtol=1e-13)
    np.testing.assert_allclose(student.pdf(np.zeros(10), 0.1), 98.81717256593437, rtol=1e-12)
    np.testing.assert_allclose(student.moment(1, 0.25, dim=3), 0.6790610905254201, rtol=1e-13)
    np.testing.assert_allclose(student.moment(2, 0.5, dim=2), 1.0, rtol=1e-13)
    np.testing.assert_allclose(student.outside_ball(3, 0.25, dim=3), 0.0007070008871921698, rtol=1e-12)
    np.testing.assert_allclose(student.outside_ball(3, 1.0, dim=3), 0.39581869640940787, rtol=1e-12)
    assert student.moment(1, 1.0, dim=3) == np.inf


def test_spectrum():
    np.testing.assert_allclose(student.eigenvalues(0.25), [0, 1, 1.75, 2.25, 2.5], atol=1e-12)
    np.testing.assert_allclose(student.eigenvalues(0.5, curvature=2.0), [0, 2, 3], atol=1e-12)
    np.testing.assert_allclose(student.eigenvalues(2.0), [0], atol=1e-12)
    np.testing.assert_allclose(student.continuum(0.25), 2.53125, rtol=1e-14)
    np.testing.assert_allclose(student.continuum(0.5, curvature=2.0), 3.125, rtol=1e-14)
    # f = 1 + |x|² in two and three dimensions.
    np.testing.assert_allclose(student.eigenvalues(0.2, 2.0, dim=2), [0, 2, 3.2, 4, 4.4, 4.8, 5.6, 6, 8], atol=1e-12)
    np.testing.assert_allclose(student.eigenvalues(0.25, 2.0, dim=3), [0, 2, 2.5, 3.5, 4, 6], atol=1e-12)
    np.testing.assert_allclose(student.continuum(0.2, 2.0, dim=2), 5.0, rtol=1e-14)
    np.testing.assert_allclose(student.continuum(1.0, 2.0, dim=3), 0.25, rtol=1e-14)


def test_moments_in_time():
    np.testing.assert_allclose(student.mean(1.5, 0.5), 0.9097959895689501, rtol=1e-14)
    np.testing.assert_allclose(
        student.second_moment(2.25, [0.5, 2.0], 0.5), [1.2387025594202783, 0.42875854770507255], rtol=1e-13
    )
    np.testing.assert_allclose(student.second_moment(2.25, 2.0, 3.0), 35.79254451938591, rtol=1e-13)
    np.testing.assert_allclose(student.second_moment(2.25, 0.5, 0.5, curvature=2.0), 0.7609994736178238, rtol=1e-13)
    np.testing.assert_allclose(student.second_moment(4.0, 0.3, 0.5, 2.0, dim=2), 2.6464349082820795, rtol=1e-13)
    np.testing.assert_allclose(student.second_moment(4.0, 0.3, 1.0, 2.0, dim=3), 9.754831602733562, rtol=1e-13)
    np.testing.assert_allclose(student.second_moment(1.0, 3.0, 2.0), 7.0, rtol=1e-13)
    assert student.fourth_moment(1.5, 0.5, 0.5) == pytest.approx(5.006918035256189, rel=1e-13)
    assert student.fourth_moment(1.5, 2.0, 0.25) == pytest.approx(0.2181123718665735, rel=1e-13)
    assert student.fourth_moment(1.5, 0.5, 0.2, scale=0.5) == pytest.approx(1.3572878647610278, rel=1e-13)
    assert student.fourth_moment(1.5, 2.0, 0.5, curvature=2.0) == pytest.approx(1.2565314801742626, rel=1e-13)
    assert student.fourth_moment(1.5, 0.5, 3.0) == pytest.approx(9285.386315878888, rel=1e-12)
    assert student.fourth_moment(1.5, 90.0, 0.25) == pytest.approx(student.moment(4, 0.25), rel=1e-12)


@pytest.mark.parametrize(
    ("temperature", "t", "x", "x0", "value"),
    [
        (2.0, 0.5, 0.0, 1.0, 0.4906833302608),
        (2.0, 0.5, 1.0, 1.0, 0.2917827324898),
        (2.0, 0.5, 3.0, 1.0, 0.02994514889891),
        (2 / 3, 0.1, -1.0, 0.0, 0.0016540763858413625),
        (2 / 3, 0.5, 0.0, 1.0, 0.48476007413053457),
        (2 / 3, 2.0, 3.0, 1.0, 0.004476829747252674),
        (0.4, 0.1, 0.5, 1.0, 0.4762855527292462),
        (0.4, 0.5, 1.0, 1.0, 0.4740045825105184),
        (0.4, 2.0, -1.0, 1.0, 0.046028119973537986),
    ],
)
def test_transition_density(temperature, t, x, x0, value):
    np.testing.assert_allclose(student.transition_pdf(x, t, x0, temperature), value, rtol=2e-12)
    # Units: λ is a rate and s a length.
    scaled = student.transition_pdf(3 * x, t / 2, 3 * x0, temperature, curvature=2.0, scale=3.0)
    np.testing.assert_allclose(scaled, value / 3, rtol=2e-12)


def test_transition_density_is_a_law_with_the_right_mean_and_limit():
    def law(x):
        return student.transition_pdf(x, 0.7, 1.5, 0.4)

    np.testing.assert_allclose(quad(law, -np.inf, np.inf, epsabs=1e-12)[0], 1, rtol=1e-9)
    np.testing.assert_allclose(
        quad(lambda x: x * law(x), -np.inf, np.inf, epsabs=1e-12)[0], student.mean(1.5, 0.7), rtol=1e-8
    )
    late = student.transition_pdf(np.array([0.3, 2.0]), 60.0, 1.5, 0.4)
    np.testing.assert_allclose(late, student.pdf(np.array([[0.3], [2.0]]), 0.4), rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: student.pdf(np.zeros(3), 2.0), "dim=3 the law .* needs p > d/2"),
        (lambda: student.moment(1, -0.5), "`temperature` must be positive"),
        (lambda: student.cdf(0.0, 0.5, scale=0.0), "`scale` must be positive"),
        (lambda: student.transition_pdf(0.0, 1.0, 0.0, 0.5), r"`temperature` must be 2/\(2N-1\)"),
        (lambda: student.transition_pdf(0.0, 0.0, 0.0, 2.0), "`t` must be positive"),
        (lambda: student.pdf(0.5, 0.5), "along the last axis"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
