# %% [markdown]
# # Attacking what one cannot look into
#
# A seller sees two things of a shop: how popular items are, and how often its own new items are shown. Is that enough
# to learn which clicks push them? PoisonRec (Song et al., ICDE 2020) says yes. Here it plays against a recommender
# that is not ours, and then against one behind a port. It takes under a minute.

# %%
import importlib.util

import jax
import numpy as np

import attacks
from models import external
from models.data import Interactions, new_items

# %% [markdown]
# ## 1. A shop
#
# 120 users, 40 items of very different popularity, and three new items that nobody has clicked. They are the targets.

# %%
rng = np.random.default_rng(0)
chance = 1 / np.arange(1, 41)
pairs = np.unique([(u, i) for u in range(120) for i in rng.choice(40, 8, p=chance / chance.sum())], axis=0)
clicks = Interactions.from_arrays(
    *rng.permutation(pairs).T, users=120, items=40, time=np.arange(len(pairs)), track="sequence"
)
train, targets = new_items(clicks, 3)
print(train)

# %% [markdown]
# ## 2. A recommender that is not ours
#
# A victim is a function that learns from interactions and gives scores. With the `implicit` library installed it is
# that library's matrix factorization; without, nearest neighbors in a few lines of NumPy.


# %%
def nearest_neighbors(data, query):
    """Cosine similarities of items by who clicked them, added up over a user's clicks."""
    clicked = np.minimum(np.asarray(data.dense()), 1)
    norm = np.maximum(np.linalg.norm(clicked, axis=0), 1e-9)
    alike = (clicked.T @ clicked) / np.outer(norm, norm)
    return lambda users: clicked[np.asarray(users)] @ alike


if importlib.util.find_spec("implicit"):
    library = external.implicit_als(factors=8, iterations=5)
    learn = lambda data, query: external.fit(library, data, 0).scores
else:
    learn = nearest_neighbors

box = attacks.Retrained(learn, train, targets, jax.random.key(1), candidates=20, k=5)
print(f"clean: the new items are shown {box.recnum():.0f} times, of {3 * train.users} at most")

# %% [markdown]
# ## 3. Learning by trial
#
# The attacker has eight accounts with eight clicks each. It proposes sets of click sequences (`ask`), the shop takes
# each in and says how often the new items are shown, and the policy learns from these numbers (`tell`). `play` does
# the round trip; every injection is a query.

# %%
learner = attacks.poisonrec_learner(fakes=8, clicks=8, sets=12, steps=12, width=16, learning_rate=1e-2)
played = attacks.play(learner, box, jax.random.key(2), train.popularity(), targets)
for step in (0, 5, 11):
    mean, share = played.history["mean_reward"][step], played.history["target_share"][step]
    print(f"step {step + 1:2d}: shown {mean:5.1f} times in the mean, {share:.0%} of the clicks on new items")
box.inject(played.profiles)
print(f"the best of {box.queries - 1} trials: {box.recnum():.0f} times")
print(np.asarray(played.profiles.clicks))
assert box.recnum() == played.history["best_reward"].max() > 0
assert played.history["mean_reward"][-3:].mean() > played.history["mean_reward"][:3].mean()

# %% [markdown]
# ## 4. Behind a port
#
# The same shop as a service that speaks JSON. The attacker has an address and nothing else; anything that answers
# these four requests can stand there.

# %%
shop = attacks.Retrained(nearest_neighbors, train, targets, jax.random.key(1), candidates=20, k=5, limit=24)
with attacks.serve(shop, items=train.items) as url:
    service = attacks.Service(url)
    remote = attacks.play(learner, service, jax.random.key(3), train.popularity(), targets, steps=2)
    print(
        f"{service.queries} queries at {url.rsplit(':', 1)[0]}: best {remote.history['best_reward'].max():.0f}"
    )
    try:
        service.inject(remote.profiles)
    except attacks.OverBudget as error:
        print(f"one more is refused: {error}")
assert shop.queries == 24

# %% [markdown]
# ## What a defender takes from this
#
# The attack needed dozens of trials, and every trial was eight accounts that clicked new items within one day and then
# had to vanish again. Rate limits on accounts, and page view counts that are delayed or rounded, cost it far more than
# a better recommender would.
