"""One contract for every attack (C1): legal, within budget, pure, reproducible, batched; what a call refuses."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attacks
from attacks.environment import environment
from models.data import Interactions, inject
from models.explain.explanation import made as made_explanations
from models.itempop import itempop
from models.ncf import gmf
from models.ncr import ncr
from models.wrmf import wrmf

USERS, ITEMS, FAKES, TARGETS, CLICKS = 8, 10, 3, 2, 4
ALL = ITEMS - 1  # of one target; without any it is ITEMS
SCENARIOS, LOOPED = 200, range(3, 200, 8)
GRID = attacks.Ratings(1.0, 5.0, 1.0)


class Member(NamedTuple):
    """An attack of the family: `make(counting)(**budget of its track)`, given a surrogate that costs nothing.

    `budgets` are what it is tried with: some, none at all and all there is. Where compiling is dear, all but the first
    `default` of them are left to `make test-all`. With the budget `looped`, one call after the other is compared.
    `targets` is how many there are, but for a budget of all other items, or of a single click: one.
    """

    make: Callable[[Any], Callable[..., attacks.Attack]]
    track: Literal["implicit", "explicit", "sequence"] = "implicit"
    budgets: tuple[int | None, ...] = (4, 0, ALL)
    goal: str = "promote"
    default: int = 3
    looped: int = 4
    targets: int = TARGETS

    def many(self, budget):
        """Targets of the scenarios with a budget; whoever spoils everything has none."""
        if self.goal == "availability":
            return 0
        return 1 if budget == (1 if self.track == "sequence" else ALL) else self.targets


def dear(member):
    """Slow to compile."""
    return member._replace(default=1)


def dearest(member):
    """So slow that the second form, without `vmap`, is left to `make test-all`."""
    return member._replace(default=1, budgets=(*member.budgets, 2), looped=2)


def variant(member):
    """Another member from the same file stands for it in the default run."""
    return member._replace(default=0)


def alone(member):
    """With one target, where a sibling has two."""
    return member._replace(targets=1)


def spoiling(member):
    """Without targets, so that all there is are all items."""
    return member._replace(goal="availability", budgets=(4, 0, ITEMS))


def implicit(factory, **settings):
    return Member(lambda counting: functools.partial(factory, **settings))


def explicit(factory, **settings):
    make = functools.partial(factory, track="explicit", ratings=GRID, **settings)
    return Member(lambda counting: make, "explicit", goal=settings.get("goal", "promote"))


def sequence(factory, **settings):
    return Member(
        lambda counting: functools.partial(factory, track="sequence", **settings),
        "sequence",
        (9, 1),
        looped=9,
    )


def against(factory, **settings):
    """An attack on a black box."""
    box = environment(itempop(), candidates=3, k=2)
    return dear(
        Member(lambda counting: functools.partial(factory, box, **settings), "sequence", (CLICKS, 1, 9))
    )


def learned(factory, **settings):
    return Member(lambda counting: functools.partial(factory, counting, steps=3, k=3, **settings))


TRAINED = wrmf(factors=2, epochs=3, scale=0.5, form="dense")
EXPLAINED = made_explanations(np.arange(4), np.arange(4), [[5], [6], [7, 8], [9]], np.arange(1, 5))
srwa = functools.partial(attacks.srwa, steps=2, sweeps=3, users=5, k=3, stages=2)
aush = functools.partial(attacks.aush, steps=2, selected=2, generator_batch=4, discriminator_batch=4)
pga = functools.partial(attacks.pga, steps=2, factors=2, sweeps=2)
tna = functools.partial(attacks.tna, steps=2, k=3, stages=2, factors=2, sweeps=2)
hcars = functools.partial(attacks.hcars, users=4, climb=2, refine=1)
reasons = ncr(
    factors=8, epochs=1, batch=None, max_history=3
)  # with two factors all clauses may be one constant
rapu_r = functools.partial(attacks.rapu_r, surrogate=wrmf(factors=2, epochs=2, form="dense"), pool=0.5)
rapu_g = functools.partial(attacks.rapu_g, surrogate=TRAINED, steps=2, tau=2, em_iterations=4, k=3)
poisonrec = functools.partial(against, attacks.poisonrec, steps=2, sets=3, width=4)
appgrad = functools.partial(against, attacks.appgrad, queries=8, directions=2)

MEMBERS = {
    "random": implicit(attacks.random),
    "random-split": implicit(attacks.random, target_mode="split"),
    "top_popular": implicit(attacks.top_popular),
    "popular": implicit(attacks.popular),
    "bandwagon": implicit(attacks.bandwagon),
    "hcars_bandwagon": implicit(attacks.hcars_bandwagon),
    "power_item": implicit(attacks.power_item, common=1),
    "segment": implicit(attacks.segment),
    "covisitation": implicit(attacks.covisitation),
    "random-ratings": explicit(attacks.random),
    "random-nuke": explicit(attacks.random, goal="demote"),
    "random-noise": spoiling(explicit(attacks.random, goal="availability")),
    "average-ratings": explicit(attacks.average),
    "popular-ratings": explicit(attacks.popular),
    "bandwagon-ratings": explicit(attacks.bandwagon),
    "hcars_bandwagon-ratings": dear(explicit(attacks.hcars_bandwagon)),
    "top_popular-ratings": explicit(attacks.top_popular),
    "power_item-ratings": dear(explicit(attacks.power_item, common=1)),
    "segment-ratings": explicit(attacks.segment),
    "random-sequence": sequence(attacks.random),
    "top_popular-sequence": dear(sequence(attacks.top_popular)),
    "popular-sequence": sequence(attacks.popular),
    "middle-sequence": sequence(attacks.middle),
    "bandwagon-sequence": dear(sequence(attacks.bandwagon)),
    "hcars_bandwagon-sequence": dear(sequence(attacks.hcars_bandwagon)),
    "power_item-sequence": sequence(attacks.power_item, common=1),
    "segment-sequence": dear(sequence(attacks.segment)),
    "covisitation-sequence": sequence(attacks.covisitation),
    "srwa": dear(implicit(srwa)),
    "srwa-ratings": alone(dearest(explicit(srwa))),
    "aush": variant(alone(implicit(aush))),
    "aush-ratings": dearest(explicit(aush)),
    "aush-nuke": variant(explicit(aush, goal="demote")),
    "dl_attack": dearest(
        implicit(
            attacks.dl_attack,
            surrogate=gmf(factors=2, epochs=1, batch=None, negatives=1),
            rounds=1,
            users=2,
            k=3,
            stages=2,
        )
    ),
    "hcars": dearest(implicit(hcars, surrogate=reasons)),
    "hcars-explained": variant(
        implicit(hcars, surrogate=attacks.reasoner(EXPLAINED, surrogate=reasons, history=3, batch=2))
    ),
    "rapu_r": dear(implicit(rapu_r)),
    "rapu_r-joint": variant(implicit(rapu_r, mode="joint")),
    "rapu_r-resampled": variant(implicit(rapu_r, resample_users=True)),
    "rapu_g": dearest(implicit(rapu_g)),
    "rapu_g-exact": variant(implicit(rapu_g, m_step="exact")),
    "rapu_g-hard": variant(implicit(rapu_g, m_step="hard")),
    "rapu_g-ensemble": variant(implicit(rapu_g, surrogate=(TRAINED, TRAINED))),
    "pga": variant(explicit(pga)),
    "pga-clicks": alone(dearest(implicit(pga, track="implicit"))),
    "pga-nuke": variant(explicit(pga, goal="demote")),
    "pga-availability": variant(spoiling(explicit(pga, goal="availability"))),
    "pga-hybrid": dear(explicit(pga, availability=1.0)),
    "pga-unrolled": variant(explicit(pga, gradient="unrolled")),
    "tna": dearest(explicit(tna)),
    "tna-nuke": variant(explicit(tna, goal="demote")),
    "tna-influence": variant(explicit(tna, subset="influence")),
    "tna-random": variant(explicit(tna, subset="random")),
    "poisonrec": dearest(poisonrec()),
    "poisonrec-nuke": variant(poisonrec(goal="demote")),
    "poisonrec-plain": variant(poisonrec(design="plain")),
    "poisonrec-bplain": variant(poisonrec(design="bplain")),
    "poisonrec-bcbt-random": variant(poisonrec(design="bcbt-random")),
    "appgrad": dearest(appgrad()),
    "appgrad-nuke": variant(appgrad(goal="demote")),
    "appgrad-gaussian": variant(appgrad(kind="gaussian", radius=0.5)),
    "revadv-topk": implicit(attacks.revadv, surrogate=TRAINED, projection="topk", steps=2, k=3)._replace(
        budgets=(4,)
    ),
    "revadv-ensemble": variant(
        implicit(attacks.revadv, surrogate=(TRAINED, TRAINED), projection="topk", steps=2, k=3)
    ),
    "revadv-threshold": dear(learned(attacks.revadv, momentum=0.0))._replace(budgets=(4, 0, ALL, None)),
    "revadv-clicks": alone(dearest(learned(attacks.revadv, projection="topk", click_targets=True))),
    "revadv-demote": learned(attacks.revadv, projection="topk", goal="demote")._replace(budgets=(4,)),
    "revadv-availability": spoiling(learned(attacks.revadv, projection="topk", goal="availability")),
}
WITHOUT_CHANCE = {
    *("top_popular", "power_item", "segment", "covisitation"),
    *("top_popular-ratings", "segment-ratings"),
}
"""Members whose profiles follow from data and targets alone."""
FAMILY = [
    pytest.param(
        name, budget, marks=[pytest.mark.slow] if number >= member.default else [], id=f"{name}-{budget}"
    )
    for name, member in MEMBERS.items()
    for number, budget in enumerate(member.budgets)
]


def test_no_attack_is_forgotten(counting):
    """Whatever of `attacks` returns an attack is a member (`revadv_preset` is `revadv` with a paper's settings)."""
    functions = {
        name: value for name in attacks.__all__ if inspect.isfunction(value := getattr(attacks, name))
    }
    makers = {name for name, value in functions.items() if value.__annotations__["return"] == "Attack"}
    assert makers - {"revadv_preset"} == {name.split("-")[0] for name in MEMBERS}
    for name, member in MEMBERS.items():
        spent = {"clicks" if member.track == "sequence" else "budget": member.budgets[0]}
        assert member.make(counting)(fakes=FAKES, **spent).name == name.split("-")[0]


@pytest.fixture(scope="session")
def made(counting):
    """`made(name, budget)`: the attack and its compiled form."""

    @functools.cache
    def make(name, budget):
        member = MEMBERS[name]
        spent = {"clicks": budget} if member.track == "sequence" else {"budget": budget}
        attack = member.make(counting)(fakes=FAKES, **spent)
        return attack, jax.jit(attack)

    return make


def scenario(seed, track):
    """Data of a kind that breaks things: users without a click, items nobody clicked, every density."""
    rng = np.random.default_rng(seed)
    clicked = rng.random((USERS, ITEMS)) < rng.choice([0.05, 0.3, 0.6, 1.0])
    clicked[rng.random(USERS) < 0.2] = False
    clicked[:, rng.random(ITEMS) < 0.3] = False
    if not clicked.any():
        clicked[0, 0] = True  # an empty data set is another test
    if track == "implicit":
        return Interactions.from_dense(clicked.astype(np.float32), capacity=USERS * ITEMS)
    user, item = np.nonzero(clicked)
    if track == "explicit":
        rating = rng.integers(1, 6, user.size).astype(np.float32)
        return Interactions.from_arrays(
            user, item, rating, users=USERS, items=ITEMS, track="explicit", capacity=USERS * ITEMS
        )
    again = rng.integers(0, user.size, min(user.size, 5))  # repeats
    user, item = np.append(user, user[again]), np.append(item, item[again])
    return Interactions.from_arrays(
        user,
        item,
        time=rng.permutation(user.size),
        users=USERS,
        items=ITEMS,
        track="sequence",
        capacity=USERS * ITEMS + 5,
    )


@functools.cache
def scenarios(track, targets):
    """Keys, data and targets of every scenario, stacked."""
    trains = [scenario(seed, track) for seed in range(SCENARIOS)]
    drawn = np.stack([np.random.default_rng(seed).permutation(ITEMS)[:targets] for seed in range(SCENARIOS)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trains)
    return jax.random.split(jax.random.key(7), SCENARIOS), stacked, jnp.asarray(drawn, jnp.int32)


@pytest.mark.parametrize(("name", "budget"), FAMILY)
def test_profiles_are_legal_and_reproducible(made, record_property, name, budget):
    member, (attack, _) = MEMBERS[name], made(name, budget)
    keys, trains, targets = scenarios(member.track, member.many(budget))
    run = jax.jit(jax.vmap(attack))
    drawn = run(keys, trains, targets)
    for leaf, again in zip(jax.tree.leaves(drawn), jax.tree.leaves(run(keys, trains, targets)), strict=True):
        assert np.asarray(leaf).tobytes() == np.asarray(again).tobytes()
    if budget == member.budgets[0]:
        other = run(jax.random.split(jax.random.key(8), SCENARIOS), trains, targets)
        same = all(
            np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, (drawn, other)), strict=True)
        )
        assert same == (name in WITHOUT_CHANCE), "another key, other profiles"
    batch = jax.tree.map(np.asarray, drawn)
    np.testing.assert_array_equal(batch.targets, targets)
    for number in range(SCENARIOS):
        profiles = jax.tree.map(lambda leaf, number=number: leaf[number], batch)
        try:
            attack.threat.validate(profiles, USERS)
        except ValueError as problem:
            raise AssertionError(f"scenario {number}: {problem}") from problem
        if budget is not None and member.track != "sequence":
            fillers = np.delete(profiles.rows, profiles.targets, axis=1) > 0
            assert (fillers.sum(axis=1) <= budget).all(), f"scenario {number}"
        if profiles.rows is not None and member.track == "explicit":
            assert np.isin(profiles.rows, np.append(0, np.arange(1, 6))).all(), f"scenario {number}"
    if budget == member.looped:
        record_property("identical", is_the_loop(made(name, budget), batch, keys, trains, targets))
    leaves_the_real_users_alone(trains, drawn)


def is_the_loop(made, batch, keys, trains, targets):
    """`vmap` over keys, data and targets gives what one call after the other does; the share of identical profiles.

    In float32 a cell of a learned attack that is at the threshold may fall either way: a few fake users may differ, and
    no scenario by more than a few cells. What draws or counts does not differ.
    """
    (attack, run), same, host = made, [], jax.tree.map(np.asarray, (trains, targets))
    for number in LOOPED:
        train, own, expected = jax.tree.map(lambda leaf, number=number: leaf[number], (*host, batch))
        called = run(keys[number], train, own)
        here = [np.asarray(p.clicks if p.rows is None else p.rows) for p in (called, expected)]
        same.append(here[0] == here[1])
    share = np.mean(np.all(same, axis=2))
    worst = np.min(np.mean(same, axis=(1, 2)))
    assert share == 1 or (attack.steps and share > 0.9 and worst > 0.5), (
        f"{share:.1%} of the fake users agree, of the worst scenario {worst:.1%} of the cells"
    )
    return float(share)


INJECTED = jax.jit(jax.vmap(inject))


def leaves_the_real_users_alone(trains, batch):
    """Injection appends the fake users' events and keeps every other one, byte for byte and in place."""
    before, after, batch = jax.tree.map(np.asarray, (trains, INJECTED(trains, batch), batch))
    size = before.user.shape[1]
    real = np.arange(size) < before.count[:, None]
    for name in ("user", "item", "weight", "time"):
        kept, were = getattr(after, name), getattr(before, name)
        if were is not None:
            np.testing.assert_array_equal(kept[:, :size][real], were[real], err_msg=name)
    held = np.zeros((SCENARIOS, USERS + FAKES, ITEMS), bool)
    world, slot = np.nonzero(after.weight > 0)
    held[world, after.user[world, slot], after.item[world, slot]] = True
    fake = np.zeros((SCENARIOS, FAKES, ITEMS), bool)
    if batch.rows is None:
        world, user, step = np.nonzero(batch.mask)
        fake[world, user, batch.clicks[world, user, step]] = True
    else:
        fake = batch.rows > 0
    np.testing.assert_array_equal(held[:, USERS:], fake)
    events = np.sum(fake if batch.rows is not None else batch.mask, axis=(1, 2))
    np.testing.assert_array_equal(after.count, before.count + events)


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((USERS, ITEMS)) < 0.4).astype(float))


@pytest.mark.parametrize("name", ["random", "top_popular", "revadv-threshold"])
def test_call_trace_run_and_jit_agree(made, train, key, name):
    attack, run = made(name, 4)
    targets = jnp.array([5, 6])
    called = run(key, train, targets).to_rows()
    traced, history = attack.trace(key, train, targets)
    driven = attacks.run(attack, key, train, targets)
    np.testing.assert_array_equal(traced.to_rows(), called)
    np.testing.assert_array_equal(driven.profiles.to_rows(), called)
    assert all(values.shape == (attack.steps,) for values in history.values())
    assert set(history) == set(driven.history)
    for metric, values in history.items():
        np.testing.assert_allclose(driven.history[metric], values, rtol=1e-5, err_msg=metric)


STEPPED = ("srwa", "aush", "dl_attack", "hcars", "rapu_g", "pga", "tna", "poisonrec", "appgrad", "revadv")
MADE = {"srwa": 2, "tna": 2, "dl_attack": 2, "hcars": 1}
"""Fake users of the first step, of attacks that make one after another."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("srwa", "tna") else pytest.mark.slow)
        for name in MEMBERS
        if name.split("-")[0] in STEPPED
    ],
)
def test_a_run_that_ends_early_is_legal(made, name):
    member = MEMBERS[name]
    attack, _ = made(name, member.budgets[0])
    keys, trains, targets = scenarios(member.track, member.many(member.budgets[0]))
    train, own = jax.tree.map(lambda leaf: leaf[3], (trains, targets))
    assert attack.steps > 1
    ended = attacks.run(attack, keys[3], train, own, on_block=lambda block: True)  # which validates
    assert ended.done == 1
    if name.split("-")[0] in MADE:
        fillers = 4 * (np.arange(FAKES) < MADE[name.split("-")[0]])
        clicks = np.sum(np.asarray(ended.profiles.rows) > 0, axis=1)
        np.testing.assert_array_equal(clicks, fillers + own.size)


def test_the_repr_is_one_readable_line(made):
    attack, _ = made("revadv-topk", 4)
    assert repr(attack).startswith("revadv(surrogate=wrmf, fakes=3, budget=4, projection='topk'")
    rows = attacks.revadv(wrmf(), fakes=2, initial=np.zeros((2, ITEMS)))
    assert "initial=<float64[2, 10]>" in repr(rows)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["random", "revadv-topk"])
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"targets": [0, 10]}, ValueError, "target 10"),
        ({"targets": [-1]}, ValueError, "target -1"),
        ({"targets": [3, 3]}, ValueError, "more than once"),
        ({"targets": []}, ValueError, "targets"),
        ({"targets": 3}, ValueError, r"shape \(\)"),
        ({"targets": [[1, 2]]}, ValueError, r"\(1, 2\)"),
        ({"targets": [0.5]}, TypeError, "integer"),
        ({"targets": np.array([2**32])}, ValueError, "4294967296"),
        ({"targets": list(range(7))}, ValueError, "budget is 4, but only 3 of the 10"),
        ({"key": 0}, TypeError, "jax.random.key"),
        ({"key": jax.random.PRNGKey(0)}, TypeError, "jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "one key"),
        ({"train": np.eye(8, 10)}, TypeError, "from_arrays"),
        ({"train": Interactions.from_dense(5 * np.eye(8, 10))}, ValueError, "'explicit'"),
        ({"train": Interactions.from_arrays([0], [1], track="sequence")}, ValueError, "'sequence'"),
    ],
)
def test_a_call_refuses(made, train, key, name, change, error, match):
    arguments = {"key": key, "train": train, "targets": [1, 2]} | change
    with pytest.raises(error, match=match):
        made(name, 4)[0](**arguments)


@pytest.mark.parametrize(
    ("factory", "arguments", "match"),
    [
        (attacks.pga, {"track": "sequence", "clicks": 4}, "pga factorizes a matrix"),
        (attacks.srwa, {"track": "sequence", "clicks": 4}, "srwa writes edges"),
        (attacks.aush, {"track": "sequence", "clicks": 4}, "aush writes ratings"),
        (attacks.tna, {"track": "sequence", "clicks": 4}, "tna learns ratings"),
        (attacks.tna, {"track": "implicit", "budget": 4}, "tna learns ratings"),
        (attacks.tna, {"budget": 4}, r"needs ratings=\(low, high, step\)"),
        (attacks.dl_attack, {"track": "sequence", "clicks": 4}, "clicks without order"),
        (attacks.dl_attack, {"track": "explicit", "budget": 4, "ratings": GRID}, "clicks without order"),
        (attacks.dl_attack, {"budget": 4, "ratings": GRID}, "has no ratings"),
        *[
            (
                functools.partial(factory, of),
                {"track": "implicit"},
                "learns the order of clicks.*revadv, rapu_g",
            )
            for factory, of in ((attacks.poisonrec, None), (attacks.appgrad, None))
        ],
        (
            attacks.poisonrec_learner,
            {"track": "explicit"},
            "learns the order of clicks.*pga and tna learn ratings",
        ),
        (
            attacks.appgrad_learner,
            {"track": "explicit"},
            "learns the order of clicks.*pga and tna learn ratings",
        ),
        *[(factory, {}, "budget is None") for factory in (srwa, aush, attacks.dl_attack)],
        *[(factory, {"ratings": GRID}, "budget is None") for factory in (pga, tna)],
        *[(factory, {"budget": 4, "clicks": 4}, "sequence has a length") for factory in (srwa, aush)],
        *[
            (factory, {"budget": 4, "clicks": 4, "ratings": GRID}, "sequence has a length")
            for factory in (pga, tna)
        ],
    ],
)
def test_what_is_said_in_the_words_of_another_track_is_refused(factory, arguments, match):
    with pytest.raises(ValueError, match=match):
        factory(fakes=FAKES, **arguments)


def test_what_is_static_is_refused_inside_jit_too(made, train, key):
    with pytest.raises(ValueError, match="budget is 8, but only 7"):
        made("random", 8)[1](key, train, jnp.array([0, 1, 2]))
    with pytest.raises(ValueError, match="integer item ids"):
        made("random", 4)[1](key, train, jnp.array([0.0]))


def test_rows_to_start_from_are_refused_where_nothing_starts(made, train, key):
    with pytest.raises(ValueError, match="does not start from rows"):
        made("random", 4)[0](key, train, jnp.array([0]), initial=jnp.zeros((FAKES, ITEMS)))


def test_a_test_set_of_another_size_is_refused(made, train, key):
    other = Interactions.from_arrays([0], [0], users=USERS + 1, items=ITEMS)
    with pytest.raises(ValueError, match=r"9 users and 10 items, train has 8"):
        made("revadv-topk", 4)[0].trace(key, train, jnp.array([0]), test=other)


def test_a_test_set_that_no_metric_reads_is_refused(made, train, key):
    attack, targets = made("random", 4)[0], jnp.array([0])
    for call in (attack.trace, functools.partial(attacks.run, attack)):
        with pytest.raises(ValueError, match="random has no test metric"):
            call(key, train, targets, test=train)
