"""What results of the science layer know: their clocks in steps and epochs, and what they were made of."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import sgdsde as sg
from solvers import Density, Grid, sde
from solvers.clocks import clocks_of

# Five examples of least squares on the line.
_data = sg.losses.LeastSquares(jnp.arange(1.0, 6.0)[:, None], jnp.ones(5))


def test_a_simulated_model_counts_steps_and_epochs_of_its_optimiser():
    model = sg.SGD(_data, sg.noise.Minibatch(_data, batch_size=2), learning_rate=0.01)
    out = sde.simulate(model, sde.EulerMaruyama(), jnp.zeros(1), t1=0.1, dt=0.005, key=0, paths=4)
    # 20 steps of the method are 10 of SGD; 2.5 of those are an epoch.
    assert out.steps == 20
    np.testing.assert_allclose(out.clocks.steps(0.1), 10)
    np.testing.assert_allclose(out.clocks.epochs(0.1), 4)
    assert "to t=0.1 = 10 steps of the algorithm = 4 epochs" in str(out)


def test_the_clock_of_adam_is_the_square_of_its_learning_rate():
    model = sg.Adam(lambda x: 0.5 * x @ x, sg.noise.Constant(1.0), 0.1, beta1=0.9, beta2=0.9)
    clocks = clocks_of(model, 0.01)
    np.testing.assert_allclose(clocks.steps(0.05), 5)
    assert clocks.steps_per_epoch is None


def test_an_optimiser_counts_epochs_and_records_loss_and_settings():
    def run(**changes):
        given = {"learning_rate": 0.01, "batch_size": 2} | changes
        return sg.optimizers.run(sg.optimizers.SGD(**given), _data, jnp.zeros(1), steps=5, key=3, runs=2)

    out = run()
    assert (out.provenance.call, out.provenance.key) == ("sgdsde.optimizers.run", (3,))
    np.testing.assert_allclose(out.clocks.epochs(0.05), 2)
    assert "to t=0.05 = 5 steps of the algorithm = 2 epochs" in str(out)
    assert out.provenance.process == run().provenance.process != run(learning_rate=0.02).provenance.process


def _laws(shift):
    # Masses of two laws on four cells, one of them as if sampled in 32 groups whose spread is 0.01.
    spread = 0.01 * np.where(np.arange(32)[:, None] % 2 == 0, 1.0, -1.0) * np.array([1.0, -1.0, 1.0, -1.0])
    grid, mass = Grid.uniform((0, 1, 4)), np.full(4, 0.25)
    moved = mass + shift * np.array([1.0, -1.0, 0.0, 0.0])
    return Density(grid, moved, replicates=moved + spread), Density(grid, mass)


def test_a_comparison_says_whether_sampling_resolves_it():
    apart = sg.compare(*_laws(0.1)).diagnose()
    assert apart.ok
    assert sg.compare(*_laws(0.0)).diagnose()["resolved"].good
    between = sg.compare(*_laws(0.1))
    between = eqx.tree_at(lambda c: c.sem.tv, between, (0.1 - between.floor.tv) / 7)
    assert "7 standard errors above that of sampling alone. Use more samples" in str(between.diagnose()["resolved"])
    exact = _laws(0.0)[1]
    assert sg.compare(exact, exact).diagnose()["resolved"].good is None
