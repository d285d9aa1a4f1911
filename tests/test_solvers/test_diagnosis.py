"""Diagnoses: each line is provoked alone, and says what to change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from solvers import Density, Diffusion, Grid, fokker_planck, paths, sde
from solvers.diagnosis import Diagnosis, Finding, judged, unknown
from solvers.sde.observables import MomentsResult
from solvers.sde.stability import longest_step, modes

_rng = np.random.default_rng(7)
_normal = _rng.normal(size=(400, 2))
_grid = Grid.uniform((-1, 1, 4))


def _ensemble(**changes):
    """Independent normal states at six times; as good as can be, until something is changed."""
    xs = _rng.normal(size=(6, 400, 2))
    moments = MomentsResult(np.zeros(2), np.eye(2), np.full(2, 0.05), 400)
    given = {
        "final": _normal,
        "ts": np.arange(1.0, 7.0),
        "xs": xs,
        "observed": {"x": moments, "p": Density(_grid, [0.2, 0.3, 0.3, 0.2])},
        "nonfinite": 0,
        "method": "by hand",
        "engine": "",
        "dt": 0.1,
        "steps": 60,
        "complete": True,
        "seconds": 1.0,
    }
    return sde.Ensemble(**(given | changes))


def _problems(result):
    return {f.about: str(f) for f in result.diagnose().findings if f.good is False}


def test_a_good_ensemble_has_no_problem():
    diagnosis = _ensemble().diagnose()
    assert diagnosis.ok, str(diagnosis)
    text = str(diagnosis)
    assert "finite: ok: all 400 stayed finite" in text
    assert "burn-in: ok: between-chunk R-hat 1.0" in text
    assert "step: not judged: the process is not in the file" in text
    # 1 / 0.05².
    assert "effective samples of 'x': ok: 400 independent ones" in text


def _with_nan():
    final = _normal.copy()
    final[3] = np.nan
    return final


_noisy = MomentsResult(np.zeros(2), np.eye(2), np.full(2, 0.2), 400)
_shifted = _rng.normal(size=(6, 400, 2)) + np.array([1.0] * 3 + [0.0] * 3)[:, None, None]
_wider = _rng.normal(size=(6, 400, 2)) * np.array([1.0] * 3 + [0.5] * 3)[:, None, None]
# A Student law of index 3, whose mean has an error bar and whose variance has none; and one of index 1.
_student = _rng.standard_t(3, size=(4000, 1)), _rng.standard_t(1, size=(4000, 1))


@pytest.mark.parametrize(
    ("changes", "about", "says"),
    [
        ({"nonfinite": 1, "final": _with_nan()}, "finite", "1 of 400 did not stay finite"),
        ({"complete": False}, "complete", "interrupted after 60 steps"),
        ({"xs": _shifted}, "burn-in", "raise `burn_in`"),
        ({"xs": _wider}, "burn-in", "raise `burn_in`"),
        ({"observed": {"x": _noisy}}, "effective samples of 'x'", "25 independent ones"),
        ({"final": (_normal + 1e5).astype(np.float32)}, "dtype", "Give `x0` in float64"),
        ({"final": _student[0], "ts": None, "xs": None}, "tail index", "`cov` of 'x' has no error bar"),
        ({"final": _student[1], "ts": None, "xs": None}, "tail index", "Means of 'x' have no standard error"),
        (
            {"observed": {"p": Density(_grid, [0.2, 0.3, 0.3, 0.1], 0.1)}},
            "outside of 'p'",
            "0.1 of the mass is outside",
        ),
    ],
)
def test_each_problem_is_found_alone(changes, about, says):
    found = _problems(_ensemble(**changes))
    assert list(found) == [about], found
    assert says in found[about]
    assert f"{about}: CHANGE: " in found[about]


def test_burn_in_is_not_judged_without_times_or_averages():
    assert "pass `save_at` with 4 times" in str(_ensemble(ts=None, xs=None).diagnose()["burn-in"])
    assert "nothing is averaged over time" in str(_ensemble(observed={}).diagnose()["burn-in"])
    # Times within the burn-in do not count: the first half of these is of another law.
    late = _ensemble(xs=np.concatenate([_shifted[:2] + 5, _wider[:1], _wider[:1], _wider[1:3]]), burn_in=2.0)
    assert late.diagnose()["burn-in"].good


def test_no_exits_are_no_rate():
    result = sde.FirstPassageResult(np.full(3, np.nan), np.zeros((0, 1)), np.ones(3), 0, 0)
    (finding,) = paths.observed({"T": result})
    assert str(finding).startswith("exits of 'T': CHANGE: 0 of the paths left. Run longer")


# The step against the stability limit


def _rotating(damping, turning):
    matrix = jnp.array([[-damping, -turning], [turning, -damping]])
    return Diffusion(lambda t, x: matrix @ x, lambda t, x: 0.0)


def test_modes_are_the_eigenvalues_of_the_drift():
    found = modes(_rotating(2.0, 3.0), 0.0, _normal)
    np.testing.assert_allclose(np.unique(np.round(found, 12)), [-2 - 3j, -2 + 3j], rtol=1e-12)
    # Modes that grow by themselves have no limit.
    assert len(modes(_rotating(-2.0, 3.0), 0.0, _normal)) == 0


@pytest.mark.parametrize(
    ("method", "rate", "limit"),
    [
        # |1 + λ h| <= 1 up to h = 2 |Re λ| / |λ|².
        (sde.EulerMaruyama(), -1.0, 2.0),
        (sde.EulerMaruyama(), -1.0 + 1.0j, 1.0),
        # Any Runge-Kutta method of two stages and order two has 1 + z + z²/2.
        (sde.WeakRK2(), -4.0, 0.5),
        (sde.DriftImplicitEuler(), -1.0, np.inf),
    ],
)
def test_the_longest_step_is_that_of_the_method(method, rate, limit):
    found = longest_step(method, 1.0, np.array([rate], complex), np.float64)
    assert found == limit


def test_a_step_beyond_the_limit_is_found():
    process = Diffusion(lambda t, x: -x, lambda t, x: 1.0)
    source = sde.ensemble.Source(process, sde.EulerMaruyama())
    assert _ensemble(source=source, dt=1.9).diagnose()["step"].good
    finding = _ensemble(source=source, dt=2.1).diagnose()["step"]
    assert finding.good is False
    assert "Use a smaller `dt`" in finding.text


def test_a_simulation_brings_its_process(float32):
    process = Diffusion(lambda t, x: -x, lambda t, x: 1.0)
    out = sde.simulate(process, sde.EulerMaruyama(), jnp.zeros(1), t1=2.0, dt=0.5, key=0, paths=64)
    # Twice and four times this step are at and beyond the limit.
    assert str(out.diagnose()["step"]) == "step: ok: dt=0.5, and decaying modes of the drift grow above about 2"


# Laws on grids


def _law(**changes):
    given = {"mass": np.array([0.2, 0.3, 0.3, 0.2]), "outside": 0.0, "error": np.full(4, 1e-4), "beyond": 1e-6}
    return Density(_grid, **(given | changes))


def test_a_good_law_has_no_problem():
    assert _law().diagnose().ok


@pytest.mark.parametrize(
    ("changes", "about", "says"),
    [
        ({"mass": np.array([0.2, 0.3, 0.3, 0.19999])}, "mass conserved", "the total deviates by 1e-05"),
        ({"mass": np.array([0.2, 0.3, 0.3, 0.1]), "outside": 0.1}, "outside", "0.1 of the mass is outside the grid"),
        ({"beyond": 0.01}, "cut off", "0.01 of the mass is cut off by the walls"),
        ({"error": np.full(4, 0.01)}, "error", "estimated error 0.04 of 1. Use cells half as wide"),
    ],
)
def test_each_problem_of_a_law_is_found_alone(changes, about, says):
    found = _problems(_law(**changes))
    assert list(found) == [about]
    assert says in found[about]


def test_a_histogram_too_fine_for_its_samples_is_found():
    few = Density.from_samples(Grid.uniform((-4, 4, 100)), _normal[:, :1])
    assert "Use more samples, or wider cells" in _problems(few)["error"]
    assert Density.from_samples(Grid.uniform((-5, 5, 4)), _normal[:, :1]).diagnose().ok


def _evolution(**changes):
    given = {"ts": np.ones(1), "densities": (_law(),), "mass_error": 1e-12, "min_mass": -1e-12}
    return fokker_planck.Evolution(**(given | changes))


def _relaxation(**changes):
    ts = np.array([0.0, 1.0, 2.0])
    chi2 = np.exp(-2 * ts)
    given = {"ts": ts, "relative_entropy": chi2, "chi2": chi2, "decay_rates": np.ones(2), "gap": 1.0, "gap_error": 1e-4}
    return fokker_planck.Relaxation(**(given | changes))


def _spectrum(**changes):
    given = {"rates": np.array([0.0, 1.0]), "matrix_rates": np.array([0.0, 1.0]), "error": np.array([0.0, 1e-4])}
    return fokker_planck.Spectrum(**(given | changes), _modes=np.ones((2, 4)), weights=np.ones(4), conserving=True)


def _exit(**changes):
    given = {"values": np.array([0.0, 2.0, 2.0, 0.0]), "error": np.full(4, 1e-4)} | changes
    values, error = given["values"], given["error"]
    return fokker_planck.ExitTime(_grid, values, values, error, abs, ("no-flux",), np.zeros(4))


def _committor(**changes):
    given = {"values": np.array([0.0, 0.3, 0.7, 1.0]), "rate": 1.0, "rate_error": 1e-4} | changes
    q, current = given["values"], np.zeros((1, 4))
    return fokker_planck.Committor(q, 1 - q, given["rate"], current, np.zeros(4), given["rate_error"])


def _study(**changes):
    dts = np.array([0.1, 0.2, 0.4])
    given = {"errors": dts, "sem": dts / 100, "order": 1.0, "interval": (0.95, 1.05)} | changes
    return sde.OrderStudy(dts, **given, kind="strong", method="M", reference="r", reference_dt=0.0, paths=64)


def _radial(**changes):
    given = {"rates": np.array([0.0, 1.0]), "error": np.array([0.0, 1e-4]), "threshold": np.inf} | changes
    return fokker_planck.RadialSpectrum(**given, modes=np.ones((2, 4)), angular=0, multiplicity=1)


def _stein(**changes):
    given = {"residual": np.array([1e-3, 0.0]), "scale": np.ones(2), "error": np.array([2e-3, 1e-3])} | changes
    return fokker_planck.Stein(("x", "xx"), **given)


@pytest.mark.parametrize(
    ("make", "changes", "about"),
    [
        (_evolution, {"mass_error": 1e-3}, "mass conserved"),
        (_evolution, {"min_mass": -1e-3}, "negativity"),
        (_evolution, {"densities": (_law(mass=np.array([0.2, 0.3, 0.3, 0.1]), outside=0.1),)}, "outside"),
        (_relaxation, {"chi2": np.array([1.0, 0.1, 0.2])}, "decay"),
        (_relaxation, {"gap_error": 0.1}, "gap"),
        (_relaxation, {"decay_rates": np.array([1.0, 1.2])}, "late times"),
        (_spectrum, {"error": np.array([0.0, 0.1])}, "rate 1"),
        (_exit, {"error": np.full(4, 0.1)}, "longest time"),
        (_exit, {"values": np.array([0.0, np.inf, 2.0, 0.0])}, "finite"),
        (_committor, {"values": np.array([0.0, 0.3, 1.1, 1.0])}, "probabilities"),
        (_committor, {"rate_error": 0.1}, "rate"),
        (_radial, {"error": np.array([0.0, 0.1])}, "rate 1"),
        (_radial, {"threshold": 1.0}, "continuous spectrum"),
        (_stein, {"residual": np.array([1e-3, -1e-2])}, "xx"),
        (_stein, {"error": np.ones(2)}, "judges"),
        (_study, {"sem": np.array([0.05, 0.002, 0.004])}, "noise"),
        (_study, {"interval": (0.5, 1.5)}, "order"),
        (_study, {"errors": np.array([0.1, 0.2, 0.6])}, "line"),
    ],
)
def test_each_problem_of_a_result_is_found_alone(make, changes, about):
    assert make().diagnose().ok
    assert list(_problems(make(**changes))) == [about]


def test_an_error_that_is_not_known_is_not_judged():
    assert _spectrum(error=np.full(2, np.nan)).diagnose()["rate 1"].good is None


def test_levels_and_extrapolations():
    given = {"estimate": 1.0, "sem": 0.005, "bias": 0.005, "tolerance": 0.01, "alpha": 1.0, "gamma": 1.0, "cost": 9}
    arrays = {name: np.ones(3) for name in ("dts", "means", "variances")} | {"paths": np.ones(3, int)}
    good = sde.Multilevel(**given, **arrays, beta=2.0, twins=False, method="M")
    assert good.diagnose().ok
    assert list(_problems(dataclasses.replace(good, bias=0.02))) == ["tolerance"]
    assert list(_problems(dataclasses.replace(good, beta=0.9))) == ["levels"]
    small = sde.Extrapolation(1.0, 0.01, (1.1, 1.05), (0.01, 0.01), 0.1, 1.0, "M", 9)
    assert small.diagnose().ok
    assert list(_problems(dataclasses.replace(small, raw=(2.0, 1.5)))) == ["bias"]


def test_lines_are_found_by_what_they_are_about():
    diagnosis = Diagnosis((judged("a", True, "fine", "never"), unknown("b", "why not")))
    assert diagnosis.ok
    assert diagnosis["b"] == Finding("b", None, "why not")
    assert str(diagnosis) == "a: ok: fine\nb: not judged: why not"
    with pytest.raises(KeyError, match=r"nothing was found about 'c'; there is \['a', 'b'\]"):
        diagnosis["c"]
    assert jax.tree.leaves(diagnosis)
