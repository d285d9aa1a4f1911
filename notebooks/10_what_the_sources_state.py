# %% [markdown]
# # What the sources state, and what holds
#
# This library grew out of four texts on stochastic gradient descent (SGD) as a process:
#
# - **notes**: lecture notes on SGD and its variants (momentum, Adam, SAM, implicit regularisation);
# - **review**: a study of the factors that influence minima (learning rate, batch size, Hessian, gradient covariance),
#   after Jastrzębski et al. (2018) and Wang (2019);
# - **teaching notes** on SGD and stochastic differential equations;
# - **slides** on continuous-time SGD and flat minima.
#
# Formulas on slides and in notes lose factors, as everybody's do. This notebook goes through those where it matters: what
# is printed, what holds, and a run or an identity that anyone can repeat. It speaks of formulas as printed there, not of
# the papers behind them.
#
# Convention: Itô, $d\theta = -\nabla f\,dt + \sqrt{2D}\,dB$, $t = \eta k$ after $k$ steps, and $\kappa$ stands for $\eta\sigma$
# where $D = \eta\sigma f\,I$.

# %%
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

import sgdsde as sg
from sgdsde import optimizers, theory
from solvers import Diffusion, Grid, fokker_planck

jax.config.update("jax_enable_x64", True)

# %% [markdown]
# ## 1. The factor 2 (slides)
#
# **Printed.** SGD becomes $d\theta = -\nabla f\,dt + \sqrt{\eta\Sigma}\,dB$, whose law solves
# $\partial_t\rho = \operatorname{div}(\rho\nabla f) + \partial_i\partial_j(\rho\Sigma_{ij})$; for $\Sigma = \sigma f I$ the
# stationary law is $f^{-1-1/\eta\sigma}$.
#
# **Holds.** The noise $\sqrt{\eta\Sigma}$ has $D = \eta\Sigma/2$, so that the second term is
# $\tfrac{\eta}{2}\partial_i\partial_j(\rho\Sigma_{ij})$, and $\Sigma = \sigma f I$ leads to $f^{-1-2/\eta\sigma}$. Either read
# the slides' $\sigma$ as defined by $D = \eta\sigma f I$, as this library does (then $\Sigma = 2\sigma f I$ and everything
# after it is consistent), or put $2/\eta\sigma$ for $1/\eta\sigma$.
#
# The Fokker-Planck solver sees drift and noise only. Here it is given the equation as printed, with $\eta\sigma = 1$.


# %%
def loss(x):
    return 0.5 * (1 + x @ x)


grid = Grid.stretched((1e5, 800, 1.0))
printed = Diffusion(lambda t, x: -jax.grad(loss)(x), lambda t, x: jnp.sqrt(1.0 * loss(x)))  # sqrt(ησ f) dB
p = fokker_planck.stationary(fokker_planck.assemble(printed, grid))
distance = {
    exponent: float(sg.compare(p, theory.power_law(loss, kappa, grid)).tv)
    for exponent, kappa in {"-1-1/ησ": 1.0, "-1-2/ησ": 0.5}.items()
}
for exponent, tv in distance.items():
    print(f"f^({exponent}): total variation {tv:.1e} from the law of the printed equation")

# %% [markdown]
# Smaller ones of the same kind: the Gibbs law is printed with the factor $\tfrac12$, and needs $1/Z$; the Hessian of
# $L = \frac{1}{2n}\sum r_i^2$ is printed without its $1/n$. The gradient covariance is printed as
# $\sum r_i^2(\nabla h_i - \nabla L)\otimes(\nabla h_i - \nabla L)$; the gradients of the examples are $r_i\nabla h_i$, so that
# $\Sigma = \frac1n\sum r_i^2\nabla h_i\otimes\nabla h_i - \nabla L\otimes\nabla L$, and "$\Sigma \approx L\,D^2L$" is
# $\Sigma\approx 2L\,D^2L$: on Gaussian data $\Sigma = 2LH + Hvv^\top H$ exactly. With many data:

# %%
rng = np.random.default_rng(0)
n, d = 400_000, 3
A = rng.normal(size=(n, d)) * np.sqrt([2.0, 1.0, 0.5])
v = np.array([0.3, -0.2, 0.5])
residual = A @ v + math.sqrt(0.3) * rng.normal(size=n)
gradients = residual[:, None] * A
covariance = np.cov(gradients.T, ddof=0)
H, L = A.T @ A / n, 0.5 * np.mean(residual**2)
Hv = H @ v
ratio = np.trace(covariance - np.outer(Hv, Hv)) / np.trace(L * H)
rank = np.linalg.matrix_rank(np.cov(gradients[:3].T, ddof=0))
print(f"(Σ - Hvvᵀ H) / (L H) = {ratio:.3f}, not 1; and 3 examples give the rank {rank}: n - 1, not n")

# %% [markdown]
# ## 2. Which minima are preferred: $\pi^* = \pi'$ (slides)
#
# **Printed.** On a manifold of minimisers of codimension $k$, loss-proportional noise leads to the weight
# $\rho^* = \int_{S^{k-1}}(\nu^\top H\nu)^{-k/2}d\nu$, constant noise to $\rho' = \det(H)^{-1/2}$, and the two differ:
# $H = \mathrm{diag}(1,\lambda)$ would give $\rho^* = 1/\mathrm{agm}(1,\lambda)$ against $\lambda^{-1/2}$.
#
# **Holds.** They are the same for every $H$. A Gaussian integral in polar coordinates gives
# $\int_{S^{k-1}}(\nu^\top H\nu)^{-k/2}d\nu = |S^{k-1}|\det(H)^{-1/2}$. The arithmetic-geometric mean belongs to
# $\int|H\nu|^{-1}d\nu$, another integral.

# %%
lam = 0.01
H = np.diag([1.0, lam])
angle = 2 * np.pi * (np.arange(4096) + 0.5) / 4096
quadratic = np.cos(angle) ** 2 + lam * np.sin(angle) ** 2
by_hand = 2 * np.pi * np.mean(1 / quadratic)
print(f"∫(νᵀHν)⁻¹dν/2π = {by_hand / (2 * np.pi):.10f} by the midpoint rule")
print(f"               = {theory.sphere.sphere_integral(H, 1.0) / (2 * np.pi):.10f} by Carlson's function")
print(f"det(H)^(-1/2)  = {lam**-0.5:.10f}")
print(f"1/agm(1, λ)    = {theory.sphere.agm_form(H @ H) / (2 * np.pi):.10f}")
three = np.diag([1.0, 0.3, 0.05])
same = theory.sphere.sphere_integral(three, 1.5) / theory.sphere.determinant_form(three)
print(f"in codimension 3, the ratio of the two weights: {same:.12f}")

# %% [markdown]
# There is a reason: both laws are decreasing functions of $f$, and laws that are functions of $f$ alone and concentrate on
# $\{f = 0\}$ have the same limit. A difference shows up away from the limit, below $\kappa_c = 2/(k-2)$, where
# loss-proportional noise has no stationary law and the limit point depends on the start, or for noise that is not a
# function of $f$ (aligned with the Hessian, of low rank, label noise).
#
# The range of $\kappa$ in which the power law exists around $\{f=0\}$ is $\kappa > \kappa_c$, which needs $k \ge 3$; far out it
# needs $f$ to grow faster than $|\theta|^2$. So under the hypothesis of a Lipschitz gradient, on which the results in
# discrete time rest, there is no stationary law at all:

# %%
for growth in (2, 4):
    window = theory.existence.normalisable_temperatures(dim=4, growth=growth, codim=3)
    print(f"d = 4, k = 3, f ~ |θ|^{growth}: κ between {window.low:g} and {window.high:g}")
lipschitz = theory.existence.normalisable_temperatures(dim=4, growth=2, codim=3)

# %% [markdown]
# ## 3. The rate of convergence in discrete time (slides)
#
# **Printed.** If $\Lambda f\le|\nabla f|^2$, $\nabla f$ is $C_L$-Lipschitz and $E|g-\nabla f|^2\le\sigma f$, then
# $E f(\theta_t)\le\rho_\eta^t E f(\theta_0)$ with $\rho_\eta = 1-\Lambda\eta+\frac{C_L(1+\sigma)}{2\Lambda}\eta^2$.
#
# **Holds.** With $\rho_\eta = 1-\Lambda\eta+\frac{C_L}{2}(\Lambda+\sigma)\eta^2$; the threshold $\eta<\frac{2\Lambda}{C_L(\Lambda+\sigma)}$
# is printed rightly. For $f=x^2/2$ and noise of variance exactly $\sigma f$ the bound is attained. A million runs of one step:

# %%
eta, sigma = 0.5, 1.0
# Cov g = 2 (noise's σ) f / η · η: the noise model's D = η s f has Σ = 2 s f, so s = σ/2.
step = optimizers.run(
    optimizers.SGD(eta),
    lambda x: 0.5 * x @ x,
    jnp.ones(1),
    steps=1,
    runs=1_000_000,
    key=1,
    noise=sg.noise.LossProportional(sigma / 2),
)
after = step.final[:, 0] ** 2
measured, sem = after.mean(), after.std() / 1000
right = theory.contraction_rate(eta, 2.0, 1.0, sigma)
wrong = theory.contraction.contraction_rate_as_printed(eta, 2.0, 1.0, sigma)
print(f"E f after one step / f = {measured:.4f} ± {sem:.4f}; ρ = {right}; as printed {wrong}, which it exceeds")

# %% [markdown]
# The theorem on almost sure convergence is printed with $\limsup E[f(\theta_t)]/\beta^t = 0$ "almost surely"; without the
# expectation it makes sense.
#
# ## 4. Convergence in the weighted norm (slides)
#
# **Printed.** If $c(1+|\theta|^2)\le f\le C(1+|\theta|^2)$, then $\int|u-\langle u\rangle|^2 f^{-1-1/\eta\sigma}$ with
# $u = f^{1+1/\eta\sigma}\rho$ decays exponentially and $\rho\to cf^{-1-1/\eta\sigma}$.
#
# **Holds**, with two conditions. At $p = 1+1/\kappa = d/2$, $d \ge 3$, there is no gap. Beyond it the power law is not
# integrable: then $c = 0$ and the mass spreads out. For $f = 1+|\theta|^2$ the sharp rates are known:

# %%
for d, kappa in [(2, 0.4), (2, 1.0), (5, 0.5), (4, 0.9), (4, 1.0)]:
    p_exponent = 1 + 1 / kappa
    law = "a law" if p_exponent > d / 2 else "no law"
    gap = theory.gaps.spectral_gap(kappa, d, curvature=2.0)
    print(f"d = {d}, κ = {kappa}: p = {p_exponent:.3f}, {law}, rate {gap:.4f}")
no_gap = theory.gaps.spectral_gap(1.0, 4, curvature=2.0)

# %% [markdown]
# ## 5. Momentum and Adam with the old average (notes)
#
# **Printed.** $m_{t+1}=\beta m_t+(1-\beta)g_t$, then $w_{t+1}=w_t-\eta m_t$; the same in Adam, with $m_t$, $v_t$.
#
# **Holds** with $m_{t+1}$ and $v_{t+1}$. Taken literally the step comes one late. That is no trifle: then the iteration on
# a curvature $h$ is stable only for $\eta h<1$, for every $\beta$, where momentum would allow $\eta h<2\frac{1+\beta}{1-\beta}$.

# %%
beta, h = 0.9, 1.0
limits = {form: theory.momentum.largest_rate(h, beta, form) for form in ("averaged", "delayed")}
print(f"largest ηh at β = {beta}: {limits['averaged']:.3g} with the new average, {limits['delayed']:.3g} with the old")
norms = {}
for form in ("ema", "delayed"):
    method = optimizers.Momentum(1.5, momentum=beta, form=form)
    run = optimizers.run(method, lambda x: 0.5 * x @ x, jnp.ones(1), steps=600, key=0, throw=False)
    norms[form] = float(np.abs(run.final).max())
    print(f"|w| after 600 steps at ηh = 1.5, {form}: {norms[form]:.2g}")

# %% [markdown]
# Adam is printed without the correction of its bias, and with the old averages its first step is 0/ε. Without the
# correction, early steps are too large by

# %%
excess = theory.adaptive.missing_bias_correction(np.array([1, 12, 100]))
print("factor at steps 1, 12, 100:", np.round(excess, 4))

# %% [markdown]
# ## 6. Second order, martingales, SAM (notes)
#
# - Convergence of $w_{t+1}=w_t-\eta Fg$ is said to need $E[(w_{t+1}-w_t)^\top\nabla L]\ge0$. The sign must be $\le$: it is
#   $-\eta\,\nabla L^\top F\,\nabla L$.
# - "The loss is non-decreasing on average, it forms a super-martingale": non-increasing is meant, and at a fixed
#   learning rate it holds only while the gradient is large. Doob's theorem then gives convergence almost surely, which is
#   more than the stated convergence in probability.
# - SAM is printed with $\nabla L(\theta_t+\rho\nabla L(w_t)/|\nabla L|)$, which should have one name for the weights. With a
#   fixed radius it does not converge on a quadratic: it ends in a cycle of two points, $|w|=\eta h\rho/(2-\eta h)$.

# %%
# E L(w⁺) - L(w) at L = w²/2 with gradient noise of variance 1: positive near the minimum.
eta = 0.1
change = {w: 0.5 * ((1 - eta) ** 2 * w**2 + eta**2) - 0.5 * w**2 for w in (1.0, 0.1)}
print("change of E L in a step:", {w: round(c, 5) for w, c in change.items()})
sam = optimizers.run(
    optimizers.SAM(0.5, radius=0.3), lambda x: x @ x, jnp.array([0.7]), steps=400, key=0, save_at=[399, 400]
)
ends = sam.xs[:, 0, 0]
cycle = theory.sharpness.cycle_amplitude(2.0, 0.3, 0.5)
print(f"SAM at ηh = 1, ρ = 0.3 ends at {ends[0]:.6f}, {ends[1]:.6f}; ηhρ/(2-ηh) = {cycle:.6f}")

# %% [markdown]
# ## 7. What shuffling regularises (notes)
#
# **Printed.** The mean iterate of SGD follows the gradient flow of a modified loss with the term
# $\frac{\eta}{4m}\sum_k|\nabla L_k|^2$, which includes the variance of the minibatch gradients.
#
# **Holds** for random reshuffling. For minibatches drawn independently the variance term is absent, and the modified loss
# is $L+\frac\eta4|\nabla L|^2$. Exactly, over all orders of four batches, after one epoch:

# %%
curvatures, centres = np.array([0.2, 0.8, 1.5, 3.5]), np.array([2.0, -1.0, 0.5, 1.0])
flows = {}
print("distance of the exact mean from the flow with / without the variance term")
for eta in (0.04, 0.02, 0.01):
    orders = []
    for order in itertools.permutations(range(4)):
        w = 3.0
        for k in order:
            w -= eta * curvatures[k] * (w - centres[k])
        orders.append(w)
    shuffled, iid = np.mean(orders), theory.shuffling.independent_mean(curvatures, centres, 3.0, eta)
    with_term = theory.shuffling.reshuffled_flow(curvatures, centres, 3.0, eta)
    without = theory.shuffling.independent_flow(curvatures, centres, 3.0, eta)
    flows[eta] = [abs(shuffled - with_term), abs(shuffled - without), abs(iid - with_term), abs(iid - without)]
    print("η = {}: shuffled {:.1e} / {:.1e}, independent {:.1e} / {:.1e}".format(eta, *flows[eta]))

# %% [markdown]
# ## 8. Riccati or Lyapunov, and which trace (review)
#
# **Printed.** The stationary covariance solves "the algebraic Riccati equation" $\Gamma H+H\Gamma=\sigma\sigma^\top$. It is
# linear: a Lyapunov equation. Its trace gives $E\,L=\frac{\eta}{4S}\operatorname{tr}C$ *whatever* $H$ is, and multiplied by
# $H$ it gives $E|\nabla L|^2=\frac{\eta}{2S}\operatorname{tr}(CH)$. Jastrzębski's
# $\frac{\eta}{4S}\operatorname{tr}H$ is the case $C=H$. The covariance is $\frac{\eta}{2S}H^{-1}C$ only where $H$ and $C$
# commute; otherwise that product is not even symmetric, and the stationary state carries a current.

# %%
H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 2]])
eta, S = 0.1, 4
P = theory.stationary_covariance(H, C, eta, S)
print(f"E L = {0.5 * np.trace(H @ P):.6f} = η tr C/(4S) = {theory.excess_loss(C, eta, S):.6f}; "
      f"η tr H/(4S) = {eta * np.trace(H) / (4 * S):.6f} (equal traces here: the sum hides what C does)")  # fmt: skip
tilted = np.diag([3.0, 0.2])
print(f"with C = diag(3, 0.2): η tr C/(4S) = {theory.excess_loss(tilted, eta, S):.6f}, "
      f"E L = {0.5 * np.trace(H @ theory.stationary_covariance(H, tilted, eta, S)):.6f}")  # fmt: skip
product = eta / (2 * S) * np.linalg.solve(H, C)
print(f"(η/2S)H⁻¹C is off by {np.abs(product - P).max():.1e}, unsymmetric by {abs(product[0, 1] - product[1, 0]):.1e}")
print(f"entropy production of the stationary state: {theory.ornstein_uhlenbeck.entropy_production(H, C, eta, S):.6f}")

# %% [markdown]
# The study's Table 1 compares the two traces for nine pairs of batch size and learning rate. Taking it at its word:

# %%
batch = np.array([100, 100, 100, 200, 200, 200, 500, 500, 500])
rate = np.array([0.08, 0.2, 0.5] * 3)
first = np.array([22398330, 44428697, 45588319, 31897024, 33932327, 41058846, 63343355, 35252033, 54212278])
second = np.array([9528207, 5501901, 4575870, 10304980, 4084640, 3486877, 9530501, 4261116, 5380719])
magnitude = np.array([2.4, 8.1, 9.9, 3.1, 8.3, 11.8, 6.6, 8.3, 10.1])
off = np.flatnonzero(np.abs(np.round(first / second, 1) - magnitude) > 0.05)
print("rows whose printed ratio is not that of its columns:", [f"{i + 1}: {first[i] / second[i]:.3f}" for i in off])
rises = [bool(np.all(np.diff(first[batch == b]) > 0)) for b in (100, 200, 500)]
print("the first column grows with the learning rate at batch sizes 100, 200, 500:", rises)
scale = rate / (4 * batch) * first
print(f"η/(4S) times the first column: {scale.min():.2g} to {scale.max():.2g}, no loss per example")

# %% [markdown]
# The BS/LR column is right, the third row is numbered 4, and the statement that the first column rises with the learning
# rate fails at batch size 500. η/(4S) times the column is in the thousands, so the table cannot be a test of
# $E\,L=\frac{\eta}{4S}\operatorname{tr}C$.
#
# ## 9. Interpolation and convexity (slides)
#
# - Through $n+1$ points goes a polynomial of degree $n$; "$n+1$" is printed.
# - $f(x)=f(0)+f'(0)\sigma(x)+\int_0^\infty f''(t)\,\sigma(t-x)\,dt$ is printed; the kernel is $\sigma(x-t)$.
# - "$L$ is convex iff $\theta\mapsto h$ is linear" must hold for all (almost all) data $y$: $h=\theta^3$ with $y=0$ has the
#   convex loss $\theta^6/2$.

# %%
t = (np.arange(20_000) + 0.5) * 5 / 20_000
x = 2.0
kernel = {
    name: 0.0 + 1.0 * x + np.sum(-np.sin(t) * np.maximum(sign * (x - t), 0)) * 5 / 20_000
    for name, sign in (("σ(x-t)", 1), ("σ(t-x)", -1))
}
print({name: round(float(value), 6) for name, value in kernel.items()}, "; sin 2 =", round(math.sin(2.0), 6))

# %% [markdown]
# ## What this notebook claims
#
# Every statement above, as numbers that could have come out otherwise.

# %%
assert distance["-1-2/ησ"] < 1e-6 < 0.05 < distance["-1-1/ησ"]  # 1
assert abs(ratio - 2) < 0.02
assert rank == 2
assert abs(by_hand / (2 * np.pi) - lam**-0.5) < 1e-9  # 2
assert abs(same - 1) < 1e-10
assert abs(theory.sphere.agm_form(np.diag([1.0, lam**2])) / (2 * np.pi) - 3.814364242074) < 1e-9
assert lipschitz.low >= lipschitz.high
assert abs(measured - right) < 4 * sem < wrong < measured - 4 * sem  # 3
assert no_gap == 0  # 4
assert norms["ema"] < 1e-3 < 1e3 < norms["delayed"]  # 5
assert np.allclose(excess, [math.sqrt(10), 6.5685203, 3.2408], atol=5e-5)
assert change[1.0] < 0 < change[0.1]  # 6
assert np.allclose(np.abs(ends), cycle)
assert ends[0] * ends[1] < 0
for right_flow, wrong_flow in ((0, 1), (3, 2)):  # 7: third order against second
    assert flows[0.04][right_flow] / flows[0.01][right_flow] > 4**2.5
    assert flows[0.04][wrong_flow] / flows[0.01][wrong_flow] < 4**2.5
assert abs(0.5 * np.trace(H @ P) - 0.01875) < 1e-12  # 8
assert [i + 1 for i in off] == [3]
assert rises == [True, True, False]
assert abs(kernel["σ(x-t)"] - math.sin(2.0)) < 1e-6 < 0.1 < abs(kernel["σ(t-x)"] - math.sin(2.0))  # 9
