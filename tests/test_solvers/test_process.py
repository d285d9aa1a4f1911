import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from solvers import AbstractDiffusion, Diffusion
from solvers.process import as_operator, noise_kind, noise_structure

X = np.array([0.3, -1.2, 2.0])
MATRIX = np.array([[1.0, 0.5], [0.0, -2.0], [3.0, 0.25]])


def _factors(dtype):
    """Every form of noise that `Diffusion` accepts, with the dense G it stands for and its kind."""
    diagonal = jnp.asarray([1.0, -2.0, 0.5], dtype)
    matrix = jnp.asarray(MATRIX, dtype)
    point, pair = jax.ShapeDtypeStruct((3,), dtype), jax.ShapeDtypeStruct((2,), dtype)
    return {
        "python int": (2, 2.0 * np.eye(3), "isotropic"),
        "python float": (0.5, 0.5 * np.eye(3), "isotropic"),
        "scalar": (jnp.asarray(-0.5, dtype), -0.5 * np.eye(3), "isotropic"),
        "list": ([1.0, -2.0, 0.5], np.diag([1.0, -2.0, 0.5]), "diagonal"),
        "diagonal": (diagonal, np.diag([1.0, -2.0, 0.5]), "diagonal"),
        "numpy matrix": (MATRIX, MATRIX, "general"),
        "matrix": (matrix, MATRIX, "general"),
        "identity operator": (lx.IdentityLinearOperator(point), np.eye(3), "isotropic"),
        "scaled operator": (-(lx.IdentityLinearOperator(point) * 3.0) / 2.0, -1.5 * np.eye(3), "isotropic"),
        "tagged operator": (
            lx.TaggedLinearOperator(lx.IdentityLinearOperator(point), lx.positive_semidefinite_tag),
            np.eye(3),
            "isotropic",
        ),
        "rectangular identity": (lx.IdentityLinearOperator(pair, point), np.eye(3, 2), "general"),
        "diagonal operator": (lx.DiagonalLinearOperator(diagonal), np.diag([1.0, -2.0, 0.5]), "diagonal"),
        "tagged diagonal": (
            lx.MatrixLinearOperator(jnp.diag(diagonal), lx.diagonal_tag),
            np.diag([1.0, -2.0, 0.5]),
            "diagonal",
        ),
        "function operator": (lx.FunctionLinearOperator(lambda v: matrix @ v, pair), MATRIX, "general"),
    }


FORMS = sorted(_factors(np.float64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_noise_acts_as_the_dense_matrix_it_stands_for(form, dtype):
    noise, dense, kind = _factors(dtype)[form]
    process = Diffusion(lambda t, x: -x, lambda t, x: noise)
    x = jnp.asarray(X, dtype)
    tolerance = 4 * np.finfo(dtype).eps

    g = eqx.filter_jit(process.noise)(0.0, x)
    assert g.as_matrix().dtype == dtype
    np.testing.assert_allclose(g.as_matrix(), dense, rtol=tolerance)
    dw = jnp.arange(1.0, 1.0 + dense.shape[1], dtype=dtype)
    assert g.mv(dw).dtype == dtype
    np.testing.assert_allclose(g.mv(dw), dense @ np.asarray(dw), rtol=tolerance, atol=tolerance)

    diffusion = process.diffusion(0.0, x)
    assert diffusion.dtype == dtype
    np.testing.assert_allclose(diffusion, dense @ dense.T / 2, rtol=tolerance, atol=tolerance)

    assert noise_kind(g) == kind
    assert noise_structure(process, x) == (kind, dense.shape[1])


def test_noise_depends_on_time_and_state():
    process = Diffusion(lambda t, x: t * x, lambda t, x: t * jnp.outer(x, x))
    x = jnp.asarray(X)
    np.testing.assert_allclose(process.drift(2.0, x), 2 * X, rtol=1e-15)
    np.testing.assert_allclose(process.noise(2.0, x).as_matrix(), 2 * np.outer(X, X), rtol=1e-15)
    # G = 2 x xᵀ, so D = G Gᵀ / 2 = 2 |x|² x xᵀ.
    np.testing.assert_allclose(process.diffusion(2.0, x), 2 * (X @ X) * np.outer(X, X), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drift_takes_the_dtype_of_the_state(dtype):
    x = jnp.asarray(X, dtype)
    for value in (jnp.asarray(X, np.float32), jnp.asarray(X, np.float64), [0.0, 1.0, 2.0], [x[0], x[1], 0.0]):
        drift = Diffusion(lambda t, x, value=value: value, lambda t, x: 1.0).drift(0.0, x)
        assert drift.dtype == dtype
        np.testing.assert_array_equal(drift, np.asarray(value, dtype))


def test_in_one_dimension_scalar_vector_and_matrix_agree():
    x = jnp.ones(1)
    forms = {"isotropic": 3.0, "diagonal": jnp.full(1, 3.0)}
    for kind, g in forms.items():
        operator = as_operator(g, x)
        assert noise_kind(operator) == kind
        assert operator.as_matrix().item() == 3.0
    # A matrix with one column is diagonal too; one with two columns is not.
    assert noise_kind(as_operator(jnp.full((1, 1), 3.0), x)) == "diagonal"
    assert noise_kind(as_operator(jnp.full((1, 2), 3.0), x)) == "general"


def test_a_process_may_be_vectorised_and_differentiated():
    process = Diffusion(lambda t, x: -(x**3), lambda t, x: jnp.sqrt(1 + x @ x))
    points = jnp.asarray(np.linspace(-1, 1, 14).reshape(7, 2))
    drift = jax.vmap(process.drift, (None, 0))(0.0, points)
    np.testing.assert_allclose(drift, -(points**3), rtol=1e-15)
    diffusion = jax.vmap(process.diffusion, (None, 0))(0.0, points)
    np.testing.assert_allclose(
        diffusion, 0.5 * (1 + jnp.sum(points**2, 1))[:, None, None] * jnp.eye(2), rtol=1e-15, atol=0
    )
    jacobian = jax.jacobian(lambda x: process.drift(0.0, x))(points[0])
    np.testing.assert_allclose(jacobian, jnp.diag(-3 * points[0] ** 2), rtol=1e-14, atol=0)


class Scaled(AbstractDiffusion):
    """A process with an array parameter, as models are written."""

    rate: jax.Array

    def drift(self, t, x):
        return -self.rate * x

    def noise(self, t, x):
        return as_operator(self.rate, x)


def test_parameters_are_leaves_so_that_a_sweep_compiles_once():
    traces = []

    @eqx.filter_jit
    def drift(process, x):
        traces.append(1)
        return process.drift(0.0, x)

    for rate in (0.5, 2.0):
        np.testing.assert_array_equal(drift(Scaled(jnp.asarray(rate)), jnp.ones(2)), -rate * np.ones(2))
    assert len(traces) == 1


def test_the_abstract_class_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        AbstractDiffusion()


def _operator(in_shape, out_shape, dtype=np.float64):
    return lx.FunctionLinearOperator(
        lambda v: jnp.zeros(out_shape, dtype) * jnp.sum(v), jax.ShapeDtypeStruct(in_shape, dtype)
    )


WRONG_NOISE = {
    "vector of another length": (
        lambda t, x: jnp.ones(2),
        ValueError,
        r"`noise\(t, x\)` must return a scalar, shape \(3,\), shape \(3, m\) or a lineax operator for x of shape "
        r"\(3,\), got shape \(2,\)\. A scalar g means g times the identity; a vector is the diagonal of G\.",
    ),
    "matrix with another number of rows": (lambda t, x: jnp.ones((2, 3)), ValueError, r"got shape \(2, 3\)"),
    "matrix without columns": (lambda t, x: jnp.ones((3, 0)), ValueError, r"got shape \(3, 0\)"),
    "three axes": (lambda t, x: jnp.ones((3, 3, 1)), ValueError, r"got shape \(3, 3, 1\)"),
    "complex": (
        lambda t, x: 1j,
        TypeError,
        r"`noise\(t, x\)` must return real numbers, got dtype complex",
    ),
    "boolean": (lambda t, x: x > 0, TypeError, r"`noise\(t, x\)` must return real numbers, got dtype bool\."),
    "nothing": (lambda t, x: None, TypeError, r"`noise\(t, x\)` must return a real array, got NoneType\."),
    "operator to another space": (
        lambda t, x: _operator((3,), (2,)),
        ValueError,
        r"`noise\(t, x\)` returned an operator from ShapeDtypeStruct\(shape=\(3,\).*\) to .*shape=\(2,\).*; for x of "
        r"shape \(3,\) and dtype float64 it must map shape \(m,\) to shape \(3,\) in that dtype\.",
    ),
    "operator on matrices": (lambda t, x: _operator((2, 2), (3,)), ValueError, r"must map shape \(m,\)"),
    "operator to a pytree": (
        lambda t, x: lx.FunctionLinearOperator(lambda v: {"a": v}, jax.ShapeDtypeStruct((3,), np.float64)),
        ValueError,
        r"to \{'a': .*it must map shape \(m,\)",
    ),
    "operator of another dtype": (lambda t, x: _operator((3,), (3,), np.float32), ValueError, "in that dtype"),
}


@pytest.mark.parametrize("case", sorted(WRONG_NOISE))
def test_wrong_noise_is_refused_with_a_remedy(case):
    noise, error, message = WRONG_NOISE[case]
    process = Diffusion(lambda t, x: -x, noise)
    with pytest.raises(error, match=message):
        process.noise(0.0, jnp.asarray(X))
    with pytest.raises(error, match=message):
        noise_structure(process, jnp.asarray(X))


def test_wrong_drift_is_refused_with_a_remedy():
    x = jnp.asarray(X)
    message = (
        r"`drift\(t, x\)` must return shape \(3,\) for x of shape \(3,\), got \(\)\. "
        r"Return one component per coordinate of x\."
    )
    with pytest.raises(ValueError, match=message):
        Diffusion(lambda t, x: jnp.sum(x), lambda t, x: 1.0).drift(0.0, x)
    with pytest.raises(ValueError, match=message):
        noise_structure(Diffusion(lambda t, x: jnp.sum(x), lambda t, x: 1.0), x)
    with pytest.raises(TypeError, match=r"`drift\(t, x\)` must return a real array, got dict\."):
        Diffusion(lambda t, x: {"x": x}, lambda t, x: 1.0).drift(0.0, x)
    with pytest.raises(TypeError, match=r"`drift\(t, x\)` must return real numbers, got dtype complex128\."):
        Diffusion(lambda t, x: x.astype(complex), lambda t, x: 1.0).drift(0.0, x)


def test_whole_number_states_are_refused_rather_than_truncated(unchecked):
    process = Diffusion(lambda t, x: -0.5 * x.astype(float), lambda t, x: 1.0)
    with pytest.raises(
        TypeError, match=r"`x` must be an array of floating point numbers, but its dtype is int64\. Use 1\.0, not 1\."
    ):
        process.drift(0.0, jnp.array([1, 2]))


@pytest.mark.parametrize("name", ["drift", "noise"])
def test_functions_are_required(name, unchecked):
    given = {"drift": lambda t, x: -x, "noise": lambda t, x: 1.0} | {name: 0.5}
    with pytest.raises(TypeError, match=rf"`{name}` must be a function of \(t, x\), but got 0\.5\."):
        Diffusion(**given)


# The annotations of an abstract method bind only calls of the parent, so a subclass can return anything.


class NotAnOperator(AbstractDiffusion):
    def drift(self, t, x):
        return -x

    def noise(self, t, x):
        return jnp.ones_like(x)


class TooShort(AbstractDiffusion):
    def drift(self, t, x):
        return -x[:1]

    def noise(self, t, x):
        return as_operator(1.0, x)


def test_subclasses_are_checked_before_anything_runs():
    message = (
        r"`noise\(t, x\)` of NotAnOperator must return a lineax operator, got ShapeDtypeStruct\. "
        r"Wrap it with `solvers\.process\.as_operator\(g, x\)`\."
    )
    with pytest.raises(TypeError, match=message):
        noise_structure(NotAnOperator(), jnp.asarray(X))
    with pytest.raises(
        ValueError, match=r"`drift\(t, x\)` must return shape \(3,\) and dtype float64 for such an x, got \(1,\)"
    ):
        noise_structure(TooShort(), jnp.asarray(X))


def test_a_user_without_float64_gets_float32(float32):
    process = Diffusion(lambda t, x: -x, lambda t, x: jnp.sqrt(1 + x @ x))
    x = jnp.ones(3)
    assert process.drift(0.0, x).dtype == process.diffusion(0.0, x).dtype == np.float32
    np.testing.assert_allclose(process.diffusion(0.0, x), 2 * np.eye(3), rtol=1e-6)
