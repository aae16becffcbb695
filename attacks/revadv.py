"""RevAdv: fake users learned by gradient descent through the surrogate's training.

Tang, Wen, Wang, "Revisiting Adversarially Learned Injection Attacks Against Recommender Systems", RecSys 2020.
`min_Xh L_adv(R_theta*)` subject to `theta* = argmin L_train(X, R) + L_train(Xh, Rh)` (eqs 1-2), by Algorithm 1,
which is in `attacks.outer`: each step trains the surrogates on the current binary rows, scores them, differentiates
`L_adv` through the training (eqs 4, 6-10), moves the rows and projects them by a threshold or a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import ArrayLike, Float

import bilevel
from attacks.attack import Attack
from attacks.feasible import Kind, make_projection
from attacks.initial import Initial, most_copied
from attacks.objective import make_objective
from attacks.outer import Outer, check_loop, loss_weights, surrogates
from attacks.surrogate import Differentiate, Estimator, make_estimator
from attacks.threat import Goal, ThreatModel
from attacks.tracks import one_track
from bilevel.descend import descend
from bilevel.unroll import Memory
from models.recommender import Recommender


@one_track("implicit", "revadv learns rows of 0 and 1, which have no order")
def revadv(
    surrogate: Recommender | Sequence[Recommender],
    *,
    fakes: int | float,
    budget: int | None = None,
    projection: Kind = "threshold",
    threshold: float | None = None,
    steps: int = 30,
    learning_rate: float = 1.0,
    momentum: float = 0.95,
    estimator: Estimator | Differentiate = "exact",
    tau: int | None = None,
    memory: Memory | None = None,
    linear: bilevel.LinearSolver | None = None,
    click_targets: bool = False,
    normalize_rows: bool = True,
    initial: Initial | Float[ArrayLike, "F I"] = "random_users",
    initial_clicks: int | None = None,
    k: int = 50,
    weights: Sequence[float] | None = None,
    block: int | None = None,
    goal: Goal = "promote",
) -> Attack:
    """RevAdv: `Xh <- Proj(Xh - eta * velocity)` with the gradient of `L_adv` through the surrogate's training.

    Args:
        surrogate: the attacker's model of the recommender, or several; their losses are added with `weights`.
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: non-target items a fake user may click, in `[0, I - T]`; `None`: whatever passes the threshold.
        projection: `"threshold"`: click what is above `threshold`, and of those at most the `budget` highest;
            `"topk"`: click the `budget` highest non-targets, exactly that many in every iterate but the first,
            which has at most that many.
        threshold: rho of the threshold projection, finite; default 0.05.
        steps: outer steps T, >= 1; iterates 0..T-1 are scored, the last update is not made use of.
        learning_rate: eta > 0.
        momentum: in [0, 1).
        estimator, tau, memory, linear: how the training is differentiated, see `attacks.surrogate.make_estimator`.
        click_targets: every fake user clicks every target. Otherwise target cells are learned like any other; under
            `"topk"` a target is clicked where it is among the row's `budget + T` highest cells.
        normalize_rows: divide each fake user's gradient by its norm.
        initial: `"random_users"` or `"first"`: copies of real users with 1 to `initial_clicks` clicks; binary rows
            `(F, I)`; or `"given"`: rows are passed when the attack is called. Rows passed at the call always win.
        initial_clicks: most clicks of a user that is copied, >= 1; default 100; only where `initial` copies users.
        k: list length of the hit ratio an iterate is scored by, >= 1.
        weights: positive weight of each surrogate's loss, default 1 each.
        block: users the loss scores at once, see `attacks.promotion`.
        goal: `"promote"` the targets; `"demote"` them, `L_adv` with the opposite sign; `"availability"`: no targets,
            what the users clicked leaves their lists, `L_adv = sum_u mean_{i clicked} log softmax(S_u)_i`.

    Returns:
        An attack; `knowledge="interactions"`. Its history has `loss` (L_adv), `target_hr` (hr_any@k) and `test_hr`
        (NaN without a test set) of the surrogate, `grad_norm`, `code` (worst `bilevel.Code`, 0 is fine) and
        `mean_clicks` of every iterate.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Tang, Wen, Wang, RecSys 2020, Algorithm 1, eqs 1-10.

    **Differs from the paper:** momentum and normalized gradient rows are in its code only; the rows returned are the
    best *scored* ones (the code starts the best at 0 and may return nothing); the budget, `"topk"`, legal initial
    rows, and the implicit and one-step estimates are ours; `threshold` is strict (`>`) as in the code, the text has
    `>=`; random initial users where the code takes the first (`initial="first"`). A cell going from 0 to 1 is
    differentiated with the weight of an unobserved cell, as in the code. Goals other than promotion are ours; there the
    best iterate is the one of the lowest loss, because a hit ratio at 0 tells no two apart.

    **How it is detected and what mitigates it:** the paper finds the click popularity of the learned profiles hard to
    tell from that of real users, but in the latent space of other models they lie close together (PCA of Mult-VAE,
    Fig. 5c), so once a few are known their neighbors are suspect: detectors by profile similarity or PCA use this.
    Limits on account creation bound `F`; training that a few users cannot sway (adversarial training, trimmed losses)
    bounds the effect; cold targets are hard to promote (Table 2).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from models.data import Interactions
    >>> from models.wrmf import wrmf
    >>> attack = revadv(wrmf(factors=2, epochs=3), fakes=2, budget=2, projection="topk", steps=2, k=3)
    >>> train = Interactions.from_dense((jnp.arange(40).reshape(5, 8) % 3 == 0).astype(float))
    >>> profiles, history = attack.trace(jax.random.key(0), train, jnp.array([1]))
    >>> profiles.validate(budget=2), history["target_hr"].shape
    (Profiles(2 fakes x 8 items, implicit, rows), (2,))
    """
    initial_clicks = most_copied(initial, initial_clicks)
    config = {**locals()}
    check_loop(
        steps=steps,
        k=k,
        initial_clicks=initial_clicks,
        initial=initial,
        click_targets=click_targets,
        normalize_rows=normalize_rows,
    )
    models = surrogates(surrogate)
    if click_targets and goal != "promote":
        raise ValueError(
            f"click_targets=True with goal {goal!r}: clicking targets promotes them; leave it out"
        )
    project = make_projection(projection, threshold=threshold, budget=budget, click_targets=click_targets)
    loop = Outer(
        threat=ThreatModel(fakes=fakes, budget=budget, goal=goal, knowledge="interactions"),
        models=models,
        weights=loss_weights(weights, len(models)),
        differentiate=make_estimator(estimator, tau=tau, memory=memory, linear=linear),
        objective=make_objective(goal, block=block),
        descent=descend(learning_rate, momentum=momentum, normalize_rows=normalize_rows),
        project=lambda rows, train, targets: project(rows, targets),
        click_targets=click_targets,
        initial=initial,
        initial_clicks=initial_clicks,
        k=k,
    )
    return loop.attack("revadv", config, steps)
