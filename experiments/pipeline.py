"""From a data set to numbers: split, choose targets, craft, inject, train the victim, judge.

    data -split-> train, test;  attack(key, train, targets) -> Profiles;  victim trained on train + Profiles
    -> metrics on real users

All methods of a repetition share its split, its targets and the victim's key, so that differences are paired.
Fake users are users like any other to the victim and come after the real ones, so that a model of factors draws the
same ones for the real users, up to a scale that counts users; ItemAE's layers are as wide as there are users, so there
clean and attacked victims share no start. Batches are drawn over all users or clicks: their order is another one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key

from models.data import Interactions, Profiles, holdout_one, inject, random_events, revadv_split, toy
from models.evaluation import evaluate
from models.recommender import Recommender
from models.train import Fitted, fit


class Case(NamedTuple):
    """What an attack faces in one repetition.

    Attributes:
        train, test: interactions of the real users; the attacker and the victim see `train`.
        targets: ids of the items to promote, `(T,)`.
        initial: fake rows to start from, `(F, I)`; None: the attack's own.
        key: the repetition's key; `keys` draws one for each purpose.
    """

    train: Interactions
    test: Interactions
    targets: Int[ArrayLike, " T"]
    initial: Float[Array, "F I"] | None
    key: Key[Array, ""]

    @property
    def keys(self) -> dict[str, Key[Array, ""]]:
        """One key a purpose: the attack's draws, and the victim's initial parameters and batches."""
        craft, victim = jax.random.split(jax.random.fold_in(self.key, 1))
        return {"attack": craft, "victim": victim}


def toy_case(seed: int) -> Case:
    """The paper's toy data of a seed: 900 users, 300 items, 100 generated rows to start from, target item 0.

    >>> toy_case(0).train.users
    900
    """
    key = jax.random.key(seed)
    data = toy(jax.random.fold_in(key, 0))
    return Case(data.train, data.test, data.targets, data.initial, key)


def make_case(
    data: Interactions, seed: int, targets: Sequence[int] | ArrayLike, split: str = "revadv"
) -> Case:
    """A repetition on real data.

    Args:
        data: all interactions, of any track.
        seed: decides the split and everything drawn later.
        targets: ids of the items to promote or demote.
        split: "revadv": 20% of each user's events held out; "rapu": 80/10/10 over all events (the 10% for
          validation are not used); "last": the last event of each user tests (sequences); "one": a random one.

    Raises:
        ValueError: unknown split.
    """
    key = jax.random.key(seed)
    if split == "revadv":
        parts = revadv_split(data, jax.random.fold_in(key, 0))
    elif split == "rapu":
        parts = random_events(data, jax.random.fold_in(key, 0))
    elif split in ("last", "one"):
        order = "last" if split == "last" else "random"
        parts = holdout_one(data, jax.random.fold_in(key, 0), order=order)
    else:
        raise ValueError(f"split={split!r}; expected 'revadv', 'rapu', 'last' or 'one'")
    return Case(parts.train, parts.test, jnp.asarray(targets), None, key)


def judge(
    victim: Recommender, case: Case, profiles: Profiles | None = None, *, k: int = 50
) -> dict[str, Any]:
    """Train a victim on the real data, with the profiles injected if given, and judge it on the real users.

    Args:
        victim: the recommender under attack.
        case: the repetition.
        profiles: fake users, None for the clean victim. It is trained with the same key either way.
        k: list length.

    Returns:
        what `measured` returns, and `seconds` of training.
    """
    fitted, seconds = trained(victim, case, profiles)
    return measured(fitted, case, k=k) | {"seconds": seconds}


def trained(victim: Recommender, case: Case, profiles: Profiles | None = None) -> tuple[Fitted, float]:
    """A victim trained on the real data and the fake users, and the seconds it took; arguments as in `judge`."""
    began = time.perf_counter()
    train = case.train if profiles is None else poisoned(case.train, profiles)
    fitted = jax.block_until_ready(fit(victim, train, case.keys["victim"]))
    return fitted, time.perf_counter() - began


def poisoned(train: Interactions, profiles: Profiles) -> Interactions:
    """The fake users among the real ones, so that a victim's work follows their clicks and not fakes x items.

    The capacity is what they need, rounded up by a 64th of the real data's, so that attacks share the victim's
    compilation.

    >>> train = Interactions.from_arrays([0, 1], [0, 2])
    >>> poisoned(train, Profiles.from_rows(np.eye(2, 3), targets=[1])).capacity
    4
    """
    if profiles.clicks is not None and train.track == "sequence":
        clicks = profiles.clicks.size
    else:
        clicks = int(jnp.sum(profiles.to_rows() > 0))
    step = max(train.capacity // 64, 1)
    return inject(train, profiles, train.capacity + -(-clicks // step) * step)


def measured(fitted: Fitted, case: Case, *, k: int = 50) -> dict[str, float]:
    """Target `hr_any`, `hr_mean` and `hr_worst`, test `recall`, `ndcg` and `hr_test`, all at k, on the real users.

    A metric that has nothing to look at (no targets, several test events for `hr_test`) is NaN.
    """
    # One compilation for all trained parameters of a model: they are arguments of the scores, not constants in them.
    scores = jax.tree_util.Partial(Fitted.scores, fitted)
    targets = case.targets if np.size(case.targets) else None  # an attack on availability has none
    found = evaluate(scores, case.train, test=case.test, targets=targets, k=k)
    names = ("hr_any", "hr_mean", "hr_worst", "recall", "ndcg", "hr_test")
    values = {name: getattr(found, name) for name in names}
    return {
        name: float("nan") if value is None else float(np.asarray(value)) for name, value in values.items()
    }


def profile_facts(profiles: Profiles, train: Interactions) -> dict[str, float]:
    """What a defender would look at first: clicks per profile, their popularity, how alike the profiles are.

    Returns:
        `clicks`: mean clicks per fake user; `popularity`: mean training clicks of the items clicked (targets
        included); `similarity`: mean cosine between two fake users (NaN for fewer than two).
    """
    rows = (np.asarray(profiles.to_rows()) > 0).astype(float)  # a rating counts as a click here
    popularity = np.asarray(train.popularity())
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count = len(rows)
    similarity = (
        ((unit @ unit.T).sum() - np.square(unit).sum()) / (count * (count - 1)) if count > 1 else np.nan
    )
    return {
        "clicks": float(rows.sum(1).mean()) if count else 0.0,
        "popularity": float((rows @ popularity).sum() / max(rows.sum(), 1.0)),
        "similarity": float(similarity),
    }
