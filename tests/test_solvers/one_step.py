"""Expectations over one step without sampling, and what they should be: local weak errors with all their digits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from solvers.sde import Increment


def cases(need, m, h, nodes=8):
    """Parts of increments over a step h, and probabilities: a Gauss-Hermite rule for normal numbers, and all signs."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    normal = {"increment": m, "time": 2 * m, "signs": m}[need]
    pairs = m * (m - 1) // 2 if need == "signs" else 0
    numbers = np.array(list(itertools.product(*[z] * normal, *[[-1.0, 1.0]] * pairs)))
    weights = np.array(list(itertools.product(*[weights / weights.sum()] * normal, *[[0.5, 0.5]] * pairs)))
    dw = np.sqrt(h) * numbers[:, :m]
    parts = {"dw": dw}
    if need == "time":
        parts["dz"] = 0.5 * h * dw + np.sqrt(h**3 / 12) * numbers[:, m:]
    if need == "signs":
        parts["signs"] = numbers[:, m:]
    return jax.tree.map(jnp.asarray, parts), weights.prod(axis=1)


def expectation(method, process, functional, t, x, *steps, nodes=8):
    """E φ(t + h, x') over one step from x for each of the steps h, for a functional φ(t, x) of any shape."""
    need, m = method.needs(process, x[None]), process.noise(t, x).in_size()

    @jax.jit
    def values(h, parts):
        return jax.vmap(lambda parts: functional(t + h, method.step(process, t, x, h, Increment(**parts))))(parts)

    means = []
    for h in steps:
        parts, weights = cases(need, m, h, nodes)
        means.append(np.tensordot(weights, values(jnp.asarray(h), parts), axes=1))
    return np.array(means)


def taylor(process, functional, t, x, *steps, order):
    """E φ(t + h, X(t + h)) to h^order: the sum of h^k L^k φ / k!, with L the generator of the process."""

    def generator(phi):
        def applied(t, x):
            def second(g):
                return jax.jvp(lambda x: jax.jvp(lambda x: phi(t, x), (x,), (g,))[1], (x,), (g,))[1]

            first = jax.jvp(phi, (t, x), (jnp.ones_like(t), process.drift(t, x)))[1]
            return first + 0.5 * jnp.sum(jax.vmap(second)(process.noise(t, x).as_matrix().T), axis=0)

        return applied

    functionals = [functional]
    for _ in range(order):
        functionals.append(generator(functionals[-1]))
    terms = jax.jit(lambda t, x: [phi(t, x) for phi in functionals])(t, x)
    return np.array([sum(h**k / math.factorial(k) * np.asarray(term) for k, term in enumerate(terms)) for h in steps])


def local_orders(method, process, functional, t, x, order, h=0.02):
    """The powers of h as which the errors of E φ over one step fall, for each component of φ."""
    steps = h, h / 2
    errors = expectation(method, process, functional, t, x, *steps)
    errors = errors - taylor(process, functional, t, x, *steps, order=order)
    return np.log2(np.abs(errors[0] / errors[1]))
