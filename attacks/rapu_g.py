"""RAPU-G: fake users learned through the training of a surrogate that doubts its data.

Zhang, Tian, Li, Su, Yang, Zhao, Gao, "Data Poisoning Attack against Recommender System Using Incomplete and Perturbed
Data", KDD 2021 (RAPU), section 3, Alg. 2. It is the outer loop of RevAdv (`attacks.outer`) with three changes:

    surrogate    trains on what EM believes of the attacker's data          attacks.pgm, attacks.denoised
    L_adv        - sum_t sum_u sum_{v in top_K(u)} g(s_ut - s_uv)           attacks.objective.ranking
    projection   Xh <- the B best non-targets of  Xh - eta velocity + beta c_i / c_max,  and all targets
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Array, ArrayLike, Float, Int

from attacks.attack import Attack
from attacks.denoised import denoised
from attacks.initial import Initial, most_copied
from attacks.objective import Wish, make_objective
from attacks.outer import Outer, Project, check_loop, loss_weights, surrogates
from attacks.pgm import MStep, Pgm
from attacks.surrogate import make_estimator
from attacks.threat import Goal, ThreatModel, fixed
from attacks.tracks import one_track
from bilevel.descend import descend
from bilevel.project import topk
from bilevel.unroll import Memory
from models.data import Interactions
from models.recommender import Recommender


@one_track("implicit", "rapu_g learns rows of 0 and 1, which have no order")
def rapu_g(
    surrogate: Recommender | Sequence[Recommender],
    *,
    fakes: int | float,
    budget: int,
    beta: float = 1.0,
    objective: Wish = "wmw",
    width: float | None = None,
    mask: bool | None = None,
    pgm: bool = True,
    m_step: MStep | None = None,
    r_bar: Literal["mean"] | float | None = None,
    sigma: float | None = None,
    em_iterations: int | None = None,
    em_every: int | None = None,
    em_last: int | None = None,
    renormalize: bool = False,
    steps: int = 30,
    learning_rate: float = 1.0,
    momentum: float = 0.95,
    tau: int = 20,
    memory: Memory | None = None,
    normalize_rows: bool = True,
    initial: Initial | Float[ArrayLike, "F I"] = "random_users",
    initial_clicks: int | None = None,
    k: int = 50,
    weights: Sequence[float] | None = None,
    block: int | None = None,
    goal: Goal = "promote",
) -> Attack:
    """RAPU-G: `Xh <- top_B(Xh - eta velocity + beta c / c_max)` and the targets, with the gradient through training.

    Args:
        surrogate: the attacker's model, or several; with `pgm` each one `wrmf` or `itemae`. The paper: WRMF.
        fakes: number of fake users `F`, or fraction of the real users in (0, 1).
        budget: non-target items a fake user clicks, in `[0, I - T]`; exactly that many in every iterate.
        beta: weight of the items' popularity `c_i / c_max` in the projection, >= 0; 0 leaves it out.
        objective: `"wmw"`, or `"cross_entropy"` as in RevAdv.
        width, mask: of `"wmw"` only, see `attacks.objective.ranking`; default 0.1 and True.
        pgm: whether the surrogate weighs its data by the generative model; False: it takes them as they are.
        m_step, r_bar, sigma, em_iterations: of the generative model, see `attacks.pgm.Pgm`; default `"paper"`,
            `"mean"`, 0.3, 50.
        em_every: epochs from one EM to the next, >= 1; default 1.
        em_last: epochs trained with responsibilities, >= 1; default the `tau` differentiated ones. The code: 3.
        renormalize: divide the weighted loss by the mean responsibility, as the code does.
        steps: outer steps T, >= 1; iterates 0..T-1 are scored, the last update is not made use of.
        learning_rate, momentum: of the outer steps: eta > 0, and in [0, 1).
        tau: epochs of the surrogate's training that are differentiated, >= 0.
        memory: what the backward pass keeps, see `bilevel.truncated`.
        normalize_rows, initial, initial_clicks, weights: as in `attacks.revadv`.
        k: list length of the objective and of the hit ratio an iterate is scored by, >= 1.
        block: users the objective and the generative model read at once.
        goal: `"promote"`; it serves no other.

    Returns:
        An attack; `knowledge="interactions"`. Its history is that of `attacks.revadv`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, out of its range, or without a use here.

    Reference: Zhang et al. (RAPU), KDD 2021, section 3, Algs 1-2, eqs 1-4; section 5.1.5 for the settings.

    **Differs from the paper:** the printed likelihood lacks brackets and eq. 4 is not its maximizer, see `attacks.pgm`.
    The budget counts non-targets and the targets come on top, where setting them after a top-(B+T) leaves up to B+2T
    clicks. The rows the loop starts from are filled up to the budget by the same projection. The code scores the
    surrogate of one iterate and saves the next; here what is scored is returned. The code's lists are not masked
    (`mask=False`). Row normalization and momentum are in the code only. `pgm=False` is RAPU-G without its model, and
    with `beta=0, objective="cross_entropy"` it is RevAdv.

    **How it is detected and what mitigates it:** every profile has the same number of clicks, most of them on the
    most popular items, beside targets that are not: an unlikely pair in any co-click statistic. What finds bandwagon
    profiles is therefore worth trying; on MovieLens-100K its reach, with its model and without, is not told apart from
    that of the most popular items alone (`attacks.top_popular`; docs/results/rapu-table2.md). The paper shows them
    scattered among real users in WRMF's latent space (Fig. 5). Limits on account creation bound `F`; cold targets are
    hard to promote (Table 5).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from models.wrmf import wrmf
    >>> attack = rapu_g(wrmf(factors=2, epochs=3), fakes=2, budget=2, steps=2, tau=2, k=3)
    >>> train = Interactions.from_dense((jnp.arange(40).reshape(5, 8) % 3 == 0).astype(float))
    >>> attack(jax.random.key(0), train, jnp.array([1])).to_rows().sum(axis=1).tolist()
    [3.0, 3.0]
    """
    initial_clicks = most_copied(initial, initial_clicks)
    config = {**locals()}
    check_loop(
        steps=steps,
        k=k,
        initial_clicks=initial_clicks,
        initial=initial,
        normalize_rows=normalize_rows,
        pgm=pgm,
        renormalize=renormalize,
    )
    ranked = _given(objective == "wmw", f"objective {objective!r}", width=width, mask=mask)
    model = _given(pgm, "pgm=False", m_step=m_step, r_bar=r_bar, sigma=sigma, iterations=em_iterations)
    em = _given(pgm, "pgm=False", every=em_every, last=em_last, renormalize=renormalize or None)
    if goal != "promote":
        raise ValueError(f"goal is {goal!r}; rapu_g serves 'promote' only: its fake users click the targets")
    differentiate = make_estimator("truncated", tau=tau, memory=memory)
    models = surrogates(surrogate)
    if pgm:
        settings: dict[str, Any] = {"last": tau} | em
        if settings["last"] == 0:
            raise ValueError(
                f"{'tau' if em_last is None else 'em_last'} is 0, so no epoch is trained with responsibilities and "
                "pgm=True does nothing: give em_last >= 1, or pgm=False"
            )
        models = tuple(denoised(one, Pgm(block=block, **model), **settings) for one in models)
    loop = Outer(
        threat=ThreatModel(fakes=fakes, budget=budget, goal=goal, knowledge="interactions"),
        models=models,
        weights=loss_weights(weights, len(models)),
        differentiate=differentiate,
        objective=make_objective(goal, objective, k=k, block=block, **ranked),
        descent=descend(learning_rate, momentum=momentum, normalize_rows=normalize_rows),
        project=popular_projection(budget, beta),
        click_targets=True,
        initial=initial,
        initial_clicks=initial_clicks,
        k=k,
        project_first=True,
    )
    return loop.attack("rapu_g", config, steps)


def popular_projection(budget: int, beta: float) -> Project:
    """`1[i among the B highest non-targets of x + beta c / c_max]`, and all targets; `c` are the items' clicks.

    Args:
        budget: B, an integer >= 0.
        beta: >= 0, finite.

    Returns:
        A function of relaxed rows `(F, I)`, the attacker's data and target ids `(T,)`; rows sum to `B + T`.

    Raises:
        ValueError: no budget, or `beta` out of its range.

    Reference: Zhang et al. (RAPU), KDD 2021, Alg. 2, line 10.

    >>> import jax.numpy as jnp
    >>> train = Interactions.from_arrays([0, 1, 1], [2, 2, 0], items=4)
    >>> popular_projection(1, 5.0)(jnp.array([[0.9, 0.0, 0.0, 0.0]]), train, jnp.array([3])).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    budget = fixed("rapu_g", budget)
    if isinstance(beta, bool) or not isinstance(beta, numbers.Real) or not 0 <= float(beta) < math.inf:
        raise ValueError(f"beta is {beta!r}; expected a finite number >= 0")

    def project(rows: Float[Array, "F I"], train: Interactions, targets: Int[Array, " T"]):
        return topk(budget, popularity=train.popularity(), beta=beta, forced=targets)(rows)

    return project


def _given(used: bool, where: str, **options: Any) -> dict[str, Any]:
    """The options that are not None; an error if they would be ignored."""
    found = {name: value for name, value in options.items() if value is not None}
    if found and not used:
        raise ValueError(f"{where} has no use for {', '.join(found)}; leave it out")
    return found
