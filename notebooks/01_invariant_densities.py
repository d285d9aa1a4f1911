# %% [markdown]
# # Invariant densities: the noise decides the law
#
# Stochastic gradient descent with a small learning rate $\eta$ behaves like the Itô diffusion
#
# $$dX = -\nabla f(X)\,dt + \sqrt{2D(X)}\,dB, \qquad t = \eta\,k \text{ after } k \text{ steps}.$$
#
# After a long time $X$ forgets where it started. What it settles into depends on the noise of the gradient:
#
# | noise | diffusion | invariant density |
# |---|---|---|
# | constant | $D = \eta\sigma\, I$ | Gibbs, $e^{-f/\eta\sigma}$ |
# | loss-proportional | $D = \eta\sigma f\, I$ | power law, $f^{-1-1/\eta\sigma}$ |
#
# Here $\sigma$ is fixed by $D$. A minibatch gradient with covariance $\Sigma$ has $D = \eta\Sigma/2$, so $D = \eta\sigma I$
# means $\Sigma = 2\sigma I$: many texts differ by this factor 2.
#
# This notebook takes one loss, gets its law by three routes that know nothing of each other (particles, the
# Fokker-Planck equation, the closed form), and holds them against both laws of the table.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgdsde as sg
from solvers import Grid, fokker_planck, sde

jax.config.update("jax_enable_x64", True)  # the Fokker-Planck solver needs 64-bit numbers

FAST = bool(os.environ.get("SGDSDE_FAST"))
PATHS = 10_000 if FAST else 100_000

# %% [markdown]
# ## One process, three routes
#
# The loss is $f(x) = \tfrac12(1 + x^2)$ in one dimension, and $\kappa = \eta\sigma = 0.1 \times 5 = 0.5$. Under
# loss-proportional noise the density $f^{-1-1/\kappa} = f^{-3}$ is a Student distribution: its tail falls like
# $|x|^{-6}$, far slower than any Gaussian.


# %%
def loss(x):
    return 0.5 * (1.0 + x @ x)


model = sg.SGD(loss, sg.noise.LossProportional(sigma=5.0), learning_rate=0.1)
kappa = float(model.temperature)

# %% [markdown]
# **Particles.** Many independent copies by Euler-Maruyama, from $x = 0$, sampled after a burn-in. The step `dt` is a tenth
# of the learning rate: with `dt` equal to the learning rate, Euler-Maruyama would *be* SGD rather than its limit.

# %%
grid = Grid.stretched((1e6, 4000, 1.0))
particles = sde.simulate(
    model,
    sde.EulerMaruyama(),
    jnp.zeros(1),
    t1=12.0,
    dt=0.01,
    key=jax.random.key(0),
    paths=PATHS,
    observe={"p": sde.Histogram(grid), "x2": sde.Moments(lambda t, x: x @ x)},
    burn_in=6.0,
    every=50,
)
print(particles)

# %% [markdown]
# The printed mean of $x^2$ is not the SDE's $\kappa/(2-\kappa) = 1/3$ but, within its error, the scheme's own
# $\kappa/(2-\kappa-dt)$, about 0.7 % more. A simulation has the law of its scheme.
#
# **Fokker-Planck.** The solver sees the drift and the noise, never the answer.

# %%
generator = fokker_planck.assemble(model, grid)
stationary = fokker_planck.stationary(generator)
spectrum = fokker_planck.spectrum(generator, k=3)
print(stationary)
print(spectrum)

# %% [markdown]
# The decay rates of this process are known: $\mu_n = n - \kappa n(n-1)/2$, here 0, 1 and 1.5. The gap 1 says how long a
# burn-in must be: after 6 time units what is left of the start has decayed by $e^{-6}$.
#
# **Closed forms.** Both candidates, on the same grid. Masses are integrals over cells, and the mass outside the grid is
# known as well.

# %%
power_law = sg.theory.power_law(loss, model.temperature, grid)
gibbs = sg.theory.gibbs(loss, model.temperature, grid)
exact_rates = np.array([0.0, 1.0, 2 - kappa])

for name, law in (("power law", power_law), ("Gibbs", gibbs)):
    print(f"Fokker-Planck against {name}: {sg.compare(stationary, law)}")

# %% [markdown]
# ## Everything in one call
#
# `compare_invariant` does all this with error bars: Euler-Maruyama and Milstein at two steps and extrapolated to
# $dt \to 0$, discrete SGD, and Fokker-Planck with an error estimate. The column *excess* says by how many standard
# errors the total variation exceeds what sampling noise alone gives.

# %%
multiplicative = sg.compare_invariant(model, paths=PATHS)
print(multiplicative)

# %% [markdown]
# Now the same loss, the same $\eta\sigma$, and constant noise. The two laws swap roles.

# %%
additive = sg.compare_invariant(sg.SGD(loss, sg.noise.Constant(sigma=5.0), learning_rate=0.1), paths=PATHS)
print(additive)

# %% [markdown]
# In the figure particles are blue with 95 % bars, Fokker-Planck is vermilion, the accepted closed form is dotted, the
# rejected one dashed. The tails tell the laws apart best. The last column shows each bin's deviation in standard errors.

# %%
figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained", dpi=80)
for result, row, noise in ((multiplicative, axes[0], "loss-proportional"), (additive, axes[1], "constant")):
    result.plot(row)
    row[0].title.set_text(f"{noise} noise")
plt.show()

# %% [markdown]
# ## Where no closed form exists
#
# Hessian-matched noise, $D = \eta\sigma f''$, on a double well. The Hessian is negative between the wells, where no real
# noise can match it: eigenvalues are clipped from below at `floor`. Neither law of the table is right, and the table says
# so. Particles and Fokker-Planck still agree with each other.

# %%
wells = sg.SGD(sg.losses.DoubleWell(0.3), sg.noise.HessianMatched(sigma=2.0, floor=0.2), learning_rate=0.1)
matched = sg.compare_invariant(wells, paths=PATHS // 2, methods=[sde.EulerMaruyama()])
print(matched)

# %% [markdown]
# ## What was claimed
#
# - Under loss-proportional noise all routes agree with the power law and reject Gibbs by more than ten standard errors;
#   under constant noise it is the other way round.
# - Euler-Maruyama has its own variance at finite `dt`.
# - The rates are $\mu_n = n - \kappa n(n-1)/2$.
# - Where there is no closed form, particles and Fokker-Planck check each other.

# %%
assert multiplicative.agrees_with("power law")
assert additive.agrees_with("Gibbs")
assert all(r.excess > 10 for r in multiplicative.rows if r.law == "Gibbs")
assert all(r.excess > 10 for r in additive.rows if r.law == "power law")
x2 = particles["x2"]
assert abs(x2.mean - kappa / (2 - kappa - 0.01)) < 4 * x2.sem
assert np.allclose(spectrum.rates, exact_rates, rtol=1e-5)
assert not matched.agrees_with("Gibbs")
assert not matched.agrees_with("power law")
assert matched.agrees_with("Fokker-Planck")
