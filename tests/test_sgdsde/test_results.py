"""What results of the science layer know: their clocks in steps and epochs, and what they were made of."""

import jax.numpy as jnp
import numpy as np

import sgdsde as sg
from solvers import sde
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
