"""`compare_invariant`: laws swap roles with the noise, and the command line says the same."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sgdsde as sg
from sgdsde.__main__ import _loss, main
from solvers import Density, Grid, sde

_student = lambda x: 0.5 * (1 + x @ x)  # noqa: E731
_model = sg.SGD(_student, sg.noise.LossProportional(5.0), 0.1)


@pytest.fixture(scope="module")
def swapped():
    # Under constant noise Milstein is Euler-Maruyama.
    return {
        "power law": sg.compare_invariant(_model, paths=20_000),
        "Gibbs": sg.compare_invariant(
            sg.SGD(_student, sg.noise.Constant(5.0), 0.1), paths=20_000, methods=[sde.EulerMaruyama()]
        ),
    }


@pytest.mark.parametrize(("law", "other"), [("power law", "Gibbs"), ("Gibbs", "power law")])
@pytest.mark.slow
def test_laws_swap_roles_with_the_noise(swapped, law, other):
    result = swapped[law]
    assert result.agrees_with(law)
    assert not result.agrees_with(other)
    assert all(r.excess > 10 for r in result.rows if r.law == other)
    assert all(abs(r.excess) < 4 for r in result.rows if r.law == law and "→" in r.route)
    assert result.verdict.startswith(f"ACCEPTED: {'the power law' if law == 'power law' else 'Gibbs'}")
    assert f"REJECTED: {'Gibbs' if law == 'power law' else 'the power law'}" in result.verdict
    routes = {r.route for r in result.rows}
    assert routes == {
        "Fokker-Planck",
        "Euler-Maruyama, dt=0.01",
        "Euler-Maruyama, dt → 0",
        "SGD, step η=0.1",
        *(["Milstein, dt=0.01", "Milstein, dt → 0"] if law == "power law" else []),
    }


def test_fokker_planck_error_is_what_it_says(swapped):
    for law, result in swapped.items():
        row = next(r for r in result.rows if r.route == "Fokker-Planck" and r.law == law)
        assert row.comparison.tv < 1e-6
        assert row.excess < 1.2


def test_sgd_has_the_bias_of_its_learning_rate(swapped):
    # E x² of the scheme at dt = η is κ/(2-η-κ): the law is wider than the limit by 7 %, and the table shows it.
    result = swapped["power law"]
    row = next(r for r in result.rows if r.route.startswith("SGD") and r.law == "power law")
    assert row.opinion == "rejected"
    assert any("finite learning rate" in n for n in result.notes)


def test_the_closed_form_is_the_student_law(swapped):
    result = swapped["power law"]
    p = result.laws["power law"]
    exact = np.diff(sg.theory.student.cdf(p.grid.edges[0], 0.5))
    assert np.allclose(p.mass, exact, atol=1e-10)


def test_table_lists_every_row(swapped):
    text = str(swapped["power law"])
    assert text.count("\n") >= 14
    for r in swapped["power law"].rows:
        assert any(line.startswith(r.route) and f" {r.law} " in line for line in text.splitlines())


def test_figure(swapped):
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    result = swapped["power law"]
    axes = result.plot()
    assert dict(mpl.rcParams) == before
    densities, tails, residuals = axes
    drawn = {line.get_label(): line for line in densities.lines}
    fp = next(line for label, line in drawn.items() if label == "Fokker-Planck")
    x, y = fp.get_data()
    assert np.allclose(y, sg.theory.student.pdf(x[:, None], 0.5), rtol=1e-4)
    assert tails.get_xscale() == tails.get_yscale() == "log"
    r, tail = next(line for line in tails.lines if line.get_label() == "Fokker-Planck").get_data()
    exact = 2 * sg.theory.student.cdf(-r, 0.5)
    seen = exact > 1e-6
    assert np.allclose(tail[seen], exact[seen], rtol=2e-3)
    assert "residuals" in residuals.get_title()
    given = plt.figure().subplots(1, 3)
    assert list(result.plot(given)) == list(given)
    with pytest.raises(ValueError, match="`axes` must be 3 axes, got 2"):
        result.plot(given[:2])
    plt.close("all")


@pytest.mark.slow
def test_two_dimensions():
    import matplotlib.pyplot as plt

    model = sg.SGD(lambda x: 0.5 * (1 + x @ x), sg.noise.LossProportional(5.0), 0.1)
    grid = Grid.stretched((1e3, 120, 1.0), (1e3, 120, 1.0))
    result = sg.compare_invariant(model, grid, paths=5000, methods=[sde.EulerMaruyama()])
    assert result.agrees_with("power law")
    assert not result.agrees_with("Gibbs")
    assert len(result.marginals["Fokker-Planck"]) == 2
    assert len(result.plot()) == 4
    plt.close("all")


@pytest.mark.slow
def test_slow_processes_start_from_the_fokker_planck_law():
    # Escape takes 10^7 time units: from a point, the other well would stay empty.
    model = sg.SGD(sg.losses.DoubleWell(), sg.noise.Constant(0.15), 0.1)
    result = sg.compare_invariant(model, Grid.uniform((-2.0, 2.0, 800)), paths=20_000, methods=[sde.EulerMaruyama()])
    assert any("start from the Fokker-Planck law" in n for n in result.notes)
    assert result.agrees_with("Gibbs")


@pytest.mark.slow
def test_a_noise_without_closed_form_is_held_against_both():
    # One well, which relaxes fast; the double well is in the first notebook.
    model = sg.SGD(lambda x: 0.3 + x @ x / 2 + (x @ x) ** 2 / 4, sg.noise.HessianMatched(3.0), 0.1)
    result = sg.compare_invariant(model, paths=10_000, methods=[sde.EulerMaruyama()])
    assert not result.agrees_with("Gibbs")
    assert not result.agrees_with("power law")
    assert result.agrees_with("Fokker-Planck")
    assert {r.law for r in result.rows} == {"Gibbs", "power law", "Fokker-Planck"}


@pytest.mark.slow
def test_a_noise_without_temperature_is_held_against_fokker_planck():
    model = sg.SGD(_student, sg.noise.Covariance(jnp.asarray([[2.0]]), batch_size=1), 0.5)
    result = sg.compare_invariant(model, paths=10_000, methods=[sde.EulerMaruyama()])
    assert result.agrees_with("Fokker-Planck")
    assert result.verdict.startswith("ACCEPTED: the Fokker-Planck law")


@pytest.mark.slow
def test_a_rival_that_does_not_exist_is_said_so():
    # f reaches 0: Gibbs is fine, f^(-p) is not integrable.
    model = sg.SGD(lambda x: 0.5 * x @ x, sg.noise.Constant(5.0), 0.1)
    result = sg.compare_invariant(model, paths=5000, methods=[sde.EulerMaruyama()])
    assert result.agrees_with("Gibbs")
    assert "DOES NOT EXIST: the power law" in result.verdict


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": _student}, "`model` must be an `sg.SGD"),
        ({"dim": 3}, "works in 1 and 2 dimensions, but dim says 3"),
        ({"dim": 1, "x0": jnp.zeros(2)}, "The dimension must be one, but `x0` says 2, `dim` says 1"),
        ({"model": sg.SGD(lambda x: 0.5 * x @ x, sg.noise.LossProportional(5.0), 0.1)}, "no invariant density"),
        ({"model": sg.SGD(lambda x: 0.5 * x @ x - 1, sg.noise.LossProportional(5.0), 0.1)}, "must not be negative"),
        ({"model": sg.SGD(lambda x: jnp.log(2 + x @ x), sg.noise.LossProportional(5.0), 0.1)}, "cannot be normalised"),
        ({"model": sg.SGD(lambda x: x, sg.noise.Constant(5.0), 0.1)}, r"`loss\(x\)` must return one number"),
    ],
)
def test_bad_arguments(arguments, text, unchecked):
    with pytest.raises((ValueError, TypeError), match=text):
        sg.compare_invariant(**({"model": _model, "paths": 100} | arguments))


def test_float64_is_asked_for(float32):
    with jax.numpy_dtype_promotion("standard"), pytest.raises((ValueError, RuntimeError), match="jax_enable_x64"):
        sg.compare_invariant(sg.SGD(_student, sg.noise.LossProportional(5.0), 0.1), paths=100)


def test_command_line_runs_the_users_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def wells(x):\n    return 0.3 + (x[0] ** 2 - 1) ** 2 / 4\n")
    out = tmp_path / "wells.png"
    arguments = ["--noise", "constant", "--sigma", "4", "--paths", "4000", "--out", str(out)]
    with jax.numpy_dtype_promotion("standard"):
        assert main(["compare", "--loss", "mine:wells", *arguments]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "ACCEPTED: Gibbs" in capsys.readouterr().out
    (by_name, dim), (by_formula, same) = (_loss(text, None) for text in ("mine:wells", "0.3 + (x**2-1)**2/4"))
    assert dim == same == 1
    assert by_formula(jnp.array([0.3])) == pytest.approx(float(by_name(jnp.array([0.3]))), rel=1e-15)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--loss", "__import__('os').system('x')"], "not allowed in a formula"),
        (["--loss", "x**2 - 1", "--noise", "loss-proportional"], "must not be negative"),
        (["--sigma", "-1"], "`sigma` must be at least 0"),
        (["--loss", "no_such_module:f"], "No module named"),
        (["--loss", "math:no_such"], "has no function 'no_such'"),
        (["--out", "/no/such/folder/a.png"], "No such file"),
    ],
)
def test_command_line_errors_are_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        assert main(["compare", "--paths", "100", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sgdsde: error: ")
    assert text in error
    assert "Traceback" not in error


def test_help_does_not_wait_for_jax():
    code = (
        "import sys, sgdsde.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_density_type_is_shared(swapped):
    assert all(isinstance(p, Density) for p in swapped["Gibbs"].laws.values())
