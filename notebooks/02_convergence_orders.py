# %% [markdown]
# # How small a step: strong order, weak order, and the step that is SGD
#
# A simulation replaces a stochastic differential equation by steps of length $dt$. This notebook measures how fast
# the error of that falls with $dt$, for the process that stands for stochastic gradient descent (SGD). There are two
# kinds of error, and one method can be good at one of them and no better at the other.
#
# **Conventions.** $f$ is the loss, $\eta$ the learning rate, and time is learning rate times steps, $t = \eta k$. The
# process is the Itô equation
#
# $$dX = -\nabla f(X)\,dt + \sqrt{2D(X)}\,dB, \qquad D = \eta\sigma f\,I = \kappa f\,I,$$
#
# with $B$ a Brownian motion in $\mathbb R^d$. This is loss-proportional noise: the stochastic gradient has covariance
# $2\sigma f\,I$, and $\kappa = \eta\sigma$. We write $\sqrt{2D} = s(x)\,I$ with $s = \sqrt{2\kappa f}$.
#
# **Strong order** $p$: the approximation $X_{dt}$, computed with the increments of the *same* Brownian path, satisfies
# $\mathbb E|X(T) - X_{dt}(T)| \le C\,dt^{\,p}$. It matters when single paths matter.
#
# **Weak order** $q$: $|\mathbb E\varphi(X(T)) - \mathbb E\varphi(X_{dt}(T))| \le C\,dt^{\,q}$ for smooth functions
# $\varphi$. It matters when laws matter: means, variances, densities.
#
# For Euler-Maruyama $p = 1/2$ and $q = 1$. Milstein's method adds the next term of the noise, which gives $p = 1$ and
# leaves $q = 1$.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import sgdsde as sg
from solvers import sde

jax.config.update("jax_enable_x64", True)

FAST = bool(os.environ.get("SGDSDE_FAST"))

learning_rate, sigma = 0.4, 1.0
noise = sg.noise.LossProportional(sigma)
kappa = learning_rate * sigma


def powers_of_two(first, last):
    return [2.0**-k for k in range(first, last + 1)]


# %% [markdown]
# ## A case with a known solution
#
# On $f = x^2/2$, a loss without a floor, $s = \sqrt{\kappa}\,|x|$. From a positive start the process stays positive
# and is geometric Brownian motion, $dX = -X\,dt + \sqrt{\kappa}\,X\,dB$, whose solution is a function of $B(t)$:
#
# $$X(t) = X(0)\exp\bigl(-(1 + \tfrac{\kappa}{2})\,t + \sqrt{\kappa}\,B(t)\bigr).$$
#
# `strong_order` drives every step size by the same Brownian paths, and compares the end points at $T = 1$ with this
# solution. The standard error of each mean is over paths. The interval of the fitted order is the sampling error of
# the fit alone; it does not cover the $O(dt)$ part of Euler-Maruyama's error, which lifts its fitted order a little
# above 1/2 at any finite step.

# %%
geometric = sg.SGD(sg.losses.Quadratic(1.0), noise, learning_rate)


def solution(x0, t, w):
    return x0 * jnp.exp(-(1 + kappa / 2) * t + jnp.sqrt(kappa) * w)


known = {
    name: sde.strong_order(
        geometric,
        method,
        jnp.array([1.0]),
        dts=[2**-6, 2**-9] if FAST else powers_of_two(6, 11),
        key=1,
        paths=2000 if FAST else 8000,
        exact=solution,
    )
    for name, method in {"Euler-Maruyama": sde.EulerMaruyama(), "Milstein": sde.Milstein()}.items()
}
for study in known.values():
    print(study)

# %% [markdown]
# ## The trap: isotropic noise does not commute
#
# From here on $f = (1 + |x|^2)/2$, which is `sg.losses.Student()`, first in two dimensions. Now
# $s = \sqrt{\kappa(1 + |x|^2)}$. The noise matrix $s\,I$ is diagonal, and it is tempting to use the Milstein formula
# for diagonal noise, which corrects each component by itself:
#
# $$X_k \mathrel{+}= \tfrac12\, s\,\partial_k s\,(\Delta B_k^2 - dt).$$
#
# That formula needs the $k$-th entry to depend on $x_k$ alone. Here it depends on all of $x$. With
# $v = s\nabla s = \kappa\nabla f$ the full Milstein term is
#
# $$X_k \mathrel{+}= \sum_{j=1}^d v_j\, I_{jk}, \qquad
# I_{jk} = \int_t^{t+dt} \bigl(B_j(u) - B_j(t)\bigr)\,dB_k(u)
# = \tfrac12(\Delta B_j\Delta B_k - \delta_{jk}dt) + A_{jk}.$$
#
# The Lévy area $A_{jk} = -A_{kj}$ is not a function of the increments. It drops out only if the noise commutes,
# that is if the columns $g_j = s\,e_j$ of the noise matrix satisfy
# $(g_j\cdot\nabla)g_k = (g_k\cdot\nabla)g_j$. Here that reads $v_j e_k = v_k e_j$, which for all $j \ne k$ holds
# only where $\nabla f = 0$.
#
# How much does the diagonal formula gain? The $d^2$ integrals $I_{jk}$ are uncorrelated, each of variance $dt^2/2$.
# Euler-Maruyama leaves out all of them, a mean square of $d\,|v|^2 dt^2/2$ a step; the diagonal formula restores
# those with $j = k$ and leaves $(d-1)\,|v|^2 dt^2/2$. The order stays 1/2. Only the constant falls, by
# $\sqrt{d/(d-1)}$: a factor 1.41 for $d = 2$, and nothing for large $d$.
#
# A method is a class with one step and its declared orders. `needs` says what the step takes of the Brownian motion:
# the diagonal formula takes no more than `increment.dw`, the increment $\Delta B$.


# %%
class DiagonalMilstein(sde.AbstractMethod):
    strong_order = 0.5
    weak_order = 1.0
    calculus = "ito"

    def needs(self, process, x):
        return "increment"

    def step(self, process, t, x, dt, increment):
        def g(y):
            return jnp.diag(process.noise(t, y).as_matrix())

        slope, dw = jnp.diag(jax.jacfwd(g)(x)), increment.dw
        return x + process.drift(t, x) * dt + g(x) * dw + 0.5 * g(x) * slope * (dw**2 - dt)


# %% [markdown]
# There is no solution in closed form to compare with now, so `strong_order` computes a reference at 1/32 of the
# smallest step. All step sizes, and the reference, follow one Brownian path *with its Lévy areas*: a coarse increment
# is the sum of the fine ones, and a coarse area is made of the fine increments and areas (Chen's relation).
# With areas drawn anew at each level, `Milstein` would follow a different solution at each step size. A method that
# asks for no areas gets the same increments and ignores the rest.
#
# The declared order chooses the reference: a method of order 1 is compared with itself, one of lower order with
# `sde.Milstein`. `DiagonalMilstein` therefore declares 1/2. When writing a method of your own, start like that: a
# comparison of a method with itself cannot show that it converges to something else.

# %%
planar = sg.SGD(sg.losses.Student(), noise, learning_rate)
start = jnp.array([1.0, 1.0])
methods = {
    "Euler-Maruyama": sde.EulerMaruyama(),
    "diagonal Milstein": DiagonalMilstein(),
    "Milstein": sde.Milstein(),
}

strong = {
    name: sde.strong_order(
        planar,
        method,
        start,
        dts=[2**-4, 2**-7] if FAST else powers_of_two(5, 8),
        key=2,
        paths=400 if FAST else 1000,
    )
    for name, method in methods.items()
}
for study in strong.values():
    print(study)

gain = strong["Euler-Maruyama"].errors / strong["diagonal Milstein"].errors
print("\nEuler-Maruyama's error over diagonal Milstein's, at each dt:", np.round(gain, 2))

# %% [markdown]
# ## In law the three methods are alike
#
# Take $\varphi(x) = |x|^2$. One step of each method maps the second moment $m = \mathbb E|X|^2$ linearly,
#
# $$m' = \bigl[(1 - dt)^2 + d\,\kappa\,dt + \tfrac12 c\,\kappa^2 dt^2\bigr]\,m + d\,\kappa\,dt,$$
#
# where $c$ counts the integrals $I_{jk}$ for each $k$ that the method includes: 0 for Euler-Maruyama, 1 for the
# diagonal formula, $d$ for Milstein. So the weak errors are known exactly. The Milstein term enters a step at $dt^2$,
# like the error of the drift: all three methods have weak order 1. A test of the weak order cannot find the trap.
#
# `weak_order` compares each method with itself at 1/16 of the smallest step on the same paths. That removes most of
# the sampling error, and the fit allows for the error of the reference. The exact values below are for the same
# difference.


# %%
def second_moment(dt, c, d=2, square=2.0, t=1.0):
    """E |X_dt(t)|² of the scheme that includes c of the d integrals of each component."""
    growth = (1 - dt) ** 2 + d * kappa * dt + 0.5 * c * (kappa * dt) ** 2
    fixed = d * kappa * dt / (1 - growth)
    return fixed + (square - fixed) * growth ** np.round(t / dt)


weak, weak_exact = {}, {}
for c, (name, method) in enumerate(methods.items()):
    study = weak[name] = sde.weak_order(
        planar,
        method,
        start,
        dts=[2**-3, 2**-5] if FAST else powers_of_two(3, 6),
        key=3,
        paths=8192 if FAST else 20_480,
        functional=lambda x: x @ x,
    )
    reference = study.dts.min() / 16
    weak_exact[name] = np.abs(second_moment(study.dts, c) - second_moment(reference, c))
    print(study)
    print("  exact errors:", *(f"{e:.4g}" for e in weak_exact[name]), "\n")

limit = float(sg.theory.student.second_moment(2.0, 1.0, kappa, dim=2))
print(f"E|X(1)|² of the SDE: {limit:.6f}; of Euler-Maruyama at dt = 1e-5: {second_moment(1e-5, 0):.6f}")

# %% [markdown]
# ## The figure
#
# Marks are the measured errors printed above, with 95 % bars from the sampling error (often smaller than the mark);
# the legend gives the fitted order ± the half-width of its 95 % interval. Grey dashes have the slopes written at
# them. In the third panel the dotted lines are the exact errors; there the marks and the line of each method but the
# second are moved sideways by 7 %, so that they can be told apart.

# %%
style = {
    "font.size": 8,
    "axes.titlesize": 9,
    "mathtext.fontset": "cm",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
}
looks = {
    "Euler-Maruyama": {"color": "#0072B2", "marker": "o"},
    "diagonal Milstein": {"color": "#009E73", "marker": "^"},
    "Milstein": {"color": "#D55E00", "marker": "s"},
}


def slope(ax, dts, y, k, label):
    """A guide of slope k through (min dts, y)."""
    ends = np.array([min(dts), max(dts)])
    ys = y * (ends / ends[0]) ** k
    _ = ax.plot(ends, ys, "--", color="0.6", lw=0.9, zorder=0)
    _ = ax.annotate(label, (ends[1], ys[1]), (4, 0), textcoords="offset points", color="0.4", va="center")


def draw(ax, studies, exact=None):
    for i, (name, study) in enumerate(studies.items()):
        half = (study.interval[1] - study.interval[0]) / 2
        label, line, x = f"{name}: {study.order:.3f} ± {half:.3f}", "-", study.dts
        if exact:
            line, x = "none", study.dts * 1.07 ** (1 - i)
            _ = ax.plot(x, exact[name], ":", color="k", lw=0.9, label="exact" if i == 0 else None)
        _ = ax.errorbar(x, study.errors, 1.96 * study.sem, label=label, ms=4, lw=1, ls=line, **looks[name])
    _ = ax.set_xscale("log", base=2)
    _ = ax.set_yscale("log")
    _ = ax.set_xlabel("step $dt$")
    ax.yaxis.set_minor_formatter("")


with plt.rc_context(style):
    figure, axes = plt.subplots(1, 3, figsize=(9.9, 3.5))
    draw(axes[0], known)
    draw(axes[1], strong)
    draw(axes[2], weak, weak_exact)
    for ax, studies in ((axes[0], known), (axes[1], strong)):
        dts, smallest = studies["Milstein"].dts, np.argmin(studies["Milstein"].dts)
        slope(ax, dts, 1.4 * studies["Euler-Maruyama"].errors[smallest], 0.5, "1/2")
        slope(ax, dts, 0.65 * studies["Milstein"].errors[smallest], 1.0, "1")
        _ = ax.set_ylabel(r"$\mathbb{E}\,|X(1) - X_{dt}(1)|$")
    slope(axes[2], weak["Milstein"].dts, 0.6 * min(weak_exact["Euler-Maruyama"]), 1.0, "1")
    _ = axes[2].set_ylabel(r"$|\,\mathbb{E}|X(1)|^2 - \mathbb{E}|X_{dt}(1)|^2\,|$")
    titles = "strong, $f = x^2/2$", "strong, $f = (1 + |x|^2)/2$, $d = 2$", "weak, $f = (1 + |x|^2)/2$, $d = 2$"
    for ax, title in zip(axes, titles, strict=True):
        _ = ax.set_title(title)
        # Room for the legend below the lines.
        _ = ax.set_ylim(bottom=ax.get_ylim()[0] / 3)
        _ = ax.legend(loc="lower right", handlelength=1.6, borderaxespad=0.2, title="fitted order", alignment="left")
    plt.show()

# %% [markdown]
# ## The step that is SGD
#
# SGD with Gaussian gradient noise is $x_{k+1} = x_k - \eta g_k$ with
# $g_k = \nabla f(x_k) + \sqrt{2\sigma f(x_k)}\,\xi_k$ and $\xi_k$ standard normal. Since
# $\eta\sqrt{2\sigma f} = \sqrt{2\kappa f}\sqrt{\eta}$, this is Euler-Maruyama with $dt = \eta$ and
# $\Delta B = -\sqrt{\eta}\,\xi$: the same map, not an approximation of it. At that step the weak error is no longer
# numerical. It is the difference between SGD and the SDE.

# %%
xi = jnp.array([0.3, -1.2])
gradient = jax.grad(planar.loss)(start) + jnp.sqrt(2 * sigma * planar.loss(start)) * xi
by_hand = start - learning_rate * gradient
increment = sde.Increment(-jnp.sqrt(learning_rate) * xi)
by_method = sde.EulerMaruyama().step(planar, 0.0, start, learning_rate, increment)
print("x - ηg:                 ", by_hand)
print("Euler-Maruyama, dt = η: ", by_method)

# %% [markdown]
# The difference has a closed form. In one dimension, $f = (1 + x^2)/2$, the stationary variance $V$ of a scheme is
# the fixed point of its second moment:
#
# $$V_\text{SDE} = \frac{\kappa}{2 - \kappa}, \qquad
# V_\text{Euler-Maruyama} = \frac{\kappa}{2 - dt - \kappa}, \qquad
# V_\text{Milstein} = \frac{\kappa}{2 - dt - \kappa - \kappa^2 dt/2}.$$
#
# With $\eta = \kappa = 0.4$ SGD has the variance 1/3 where the SDE has 1/4. `simulate` measures it with `Moments`, as
# an average over time and independent paths after a burn-in. The mean stays 0 by symmetry, so $V = \mathbb E X^2$.

# %%
steps = [0.4, 0.1] if FAST else [0.4, 0.2, 0.1, 0.05]
square = sde.Moments(lambda t, x: x[0] ** 2)
exact_variance = {
    "Euler-Maruyama": lambda dt: kappa / (2 - dt - kappa),
    "Milstein": lambda dt: kappa / (2 - dt - kappa - kappa**2 * dt / 2),
}
sde_variance = float(sg.theory.student.moment(2, kappa))
table = {}
for name in exact_variance:
    for dt in steps:
        ensemble = sde.simulate(
            planar,
            methods[name],
            jnp.zeros(1),
            t1=60.0,
            dt=dt,
            key=4,
            paths=1024 if FAST else 4096,
            burn_in=10.0,
            observe={"square": square},
        )
        table[name, dt] = ensemble["square"]

print("stationary variance    dt     measured          exact")
for (name, dt), result in table.items():
    remark = "  <- SGD" if name == "Euler-Maruyama" and dt == learning_rate else ""
    print(f"{name:20s} {dt:5.2f}   {result.mean:.4f} ± {result.sem:.4f}   {exact_variance[name](dt):.4f}{remark}")
print(f"{'SDE':20s} {'':5s}   {'':15s}   {sde_variance:.4f}")

# %% [markdown]
# ## What follows
#
# - For laws use `EulerMaruyama`. Here Milstein has the *larger* weak error at every step, though its paths are better.
# - For paths use `Milstein`, which samples the Lévy areas that this noise needs; in one dimension there are none.
# - To study the SDE take $dt$ well below $\eta$; to study SGD with Gaussian noise take $dt = \eta$ and
#   Euler-Maruyama. The orders describe the first; no order makes the second go away.
#
# The last cell checks what was said. 0.75 lies halfway between the two strong orders, so no interval may contain it.

# %%
half = [known["Euler-Maruyama"], strong["Euler-Maruyama"], strong["diagonal Milstein"]]
one = [known["Milstein"], strong["Milstein"], *weak.values()]
for study, order in [(s, 0.5) for s in half] + [(s, 1.0) for s in one]:
    low, high = study.interval
    assert high < 0.75 if order == 0.5 else low > 0.75, str(study)
    # The O(dt) part and sampling error; the first is larger at the large steps of the fast run.
    assert abs(study.order - order) < (0.2 if FAST else 0.1), str(study)

# sqrt(d / (d - 1)) at the smallest step, to a few times its sampling error.
assert abs(gain[-1] - np.sqrt(2)) < (0.2 if FAST else 0.1)

for name, study in weak.items():
    assert np.all(np.abs(study.errors - weak_exact[name]) < 4 * study.sem), str(study)
assert np.all(weak_exact["Milstein"] > weak_exact["Euler-Maruyama"])
assert abs(second_moment(1e-5, 0) - limit) < 1e-4

assert np.allclose(by_hand, by_method, rtol=1e-14)
assert abs(sde_variance - kappa / (2 - kappa)) < 1e-12
for (name, dt), result in table.items():
    assert abs(result.mean - exact_variance[name](dt)) < 4 * result.sem, (name, dt, str(result))
sgd = table["Euler-Maruyama", learning_rate]
assert sgd.mean - sde_variance > 10 * sgd.sem
