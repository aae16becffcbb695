# %% [markdown]
# # Exact against truncated gradients
#
# A recommender is trained on data that contain fake users. How does the trained model change when a fake
# user clicks one more item? That is a derivative *through the training*. This notebook takes it exactly,
# cuts it short, leaves it out, and looks at what each attack is worth. It runs in a minute or two on a
# laptop; open it as a notebook with Jupytext, or run it as a script.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import attacks
import bilevel
from models.data import toy

# %% [markdown]
# ## 1. The smallest bilevel problem
#
# Train `p` to be near `x` by ten steps of gradient descent, then ask how the result depends on `x`. Every
# step closes half of the gap, so the exact slope is `1 - 1/2^10`; the last `tau` steps alone explain `1 -
# 1/2^tau` of it.

# %%
inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=10)
key = jax.random.key(0)
slope = lambda solve: float(jax.grad(lambda x: solve(x, jnp.array(0.0), None, key))(1.0))
for tau in (0, 1, 2, 5, 10):
    print(f"tau={tau:2d}: {slope(bilevel.truncated(inner, tau)):.4f}   expected {1 - 0.5**tau:.4f}")
assert np.isclose(slope(bilevel.unrolled(inner)), 1 - 0.5**10)

# %% [markdown]
# ## 2. The paper's toy data
#
# 900 users and 300 items, 100 fake users that start as genuine-looking rows, one target item. The surrogate
# is weighted matrix factorization, trained by 100 steps of Adam. The attack is a value; `trace` runs it and
# gives the history of every outer step.

# %%
data = toy(jax.random.key(1))
steps = 6  # the paper has 50
hows = {
    "exact": {"estimator": "exact"},
    "tau = 5": {"estimator": "truncated", "tau": 5},
    "partial": {"estimator": "partial"},
}
histories = {}
for name, how in hows.items():
    attack = attacks.revadv_preset("toy", steps=steps, **how)
    profiles, histories[name] = attack.trace(
        jax.random.key(2), data.train, data.targets, test=data.test, initial=data.initial
    )
    hr = histories[name]["target_hr"]
    print(f"{name:8s} target HR@10: first {hr[0]:.3f}, best {hr.max():.3f}; {profiles}")

# %% [markdown]
# The partial derivative of this surrogate is exactly zero: its predictions read the parameters, not the
# fake rows. It stays where it started. The last five of a hundred steps find part of what the exact
# gradient finds.

# %%
figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, history in histories.items():
    axis.plot(history["target_hr"], label=name)
axis.set(xlabel="outer step", ylabel="target HR@10 of the surrogate")
axis.legend(frameon=False)
assert np.ptp(histories["partial"]["target_hr"]) == 0
assert histories["exact"]["target_hr"].max() > histories["exact"]["target_hr"][0]

# %% [markdown]
# ## 3. Why: the two gradients at one point
#
# `bilevel.agreement` compares two estimators where they start. A cosine well below one after a truncation
# to five steps is what the history above has shown; the seconds and the bytes are what it saves.

# %%
surrogate = attacks.revadv_preset("toy").config["surrogate"]
loop = surrogate.trainer(900, 300, 100)
params0 = surrogate.init(jax.random.key(3), 900, 300, 100)
users = jnp.arange(900)


def promote(params, x, data):
    """The adversarial loss of eq. 3: minus the log-probability of the target, summed over the real users."""
    return -jnp.sum(jax.nn.log_softmax(surrogate.scores(params, x, data, users))[:, 0])


at = {
    "x": data.initial.astype(jnp.float32),
    "params0": params0,
    "data": surrogate.prepare(data.train),
    "key": key,
}
for tau in (5, 50, 100):
    found = bilevel.agreement(
        bilevel.truncated(loop, tau), bilevel.unrolled(loop), outer=promote, repeats=1, **at
    )
    print(
        f"tau={tau:3d}: cosine {found.cosine:+.2f}, {found.seconds[0]:.2f} s against {found.seconds[1]:.2f} s"
    )
assert found.cosine > 0.999

# %% [markdown]
# ## 4. How far to believe it
#
# The implicit function theorem would give the gradient at a *converged* training without any unrolling. At
# the paper's 100 steps the inner problem is far from converged, and the diagnosis says so instead of
# returning a number that looks fine.

# %%
implicit = bilevel.value_and_hypergrad(promote, bilevel.implicit(loop, bilevel.cg(max_steps=20)))
diagnosis = jax.jit(implicit)(at["x"], params0, at["data"], key).diagnosis
print(f"|inner gradient| = {diagnosis.gradient_norm:.0f}, code {bilevel.Code(int(diagnosis.code)).name}")
assert int(diagnosis.code) != bilevel.Code.OK
