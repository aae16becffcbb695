"""How each recommender takes injected clicks in, and what it then says of a few items: the inside of a black box.

Song, Zhao et al., "PoisonRec", ICDE 2020, Alg. 1, `DataPoisoning`, and section IV-A: the clean ranker is reloaded,
updated with the attackers' clicks only, and ranks a handful of candidates for every user.

| ranker               | the update                                                      | read at candidates |
|----------------------|-----------------------------------------------------------------|--------------------|
| ItemPop              | counts are added                                                | counts             |
| CoVisitation         | co-visits and visits are added                                  | counts kept apart  |
| PMF, BPR, NeuMF, ... | its own loss on the clicks of the attackers, who are new users  | product or network |
| AutoRec (by user)    | the same; its rows are the attackers'                           | product            |
| GRU4Rec              | the same; its sessions are the attackers'                       | product            |
| NGCF, LightGCN       | the same; the pairs are the attackers', the graph is everybody's | product           |
| others               | trained again on all clicks (`update="scratch"`)                | picked from all    |

The real users' rows get no gradient from the attackers' clicks, so they are left out of the training and its cost is
that of the clicks and the item table.
"""

from __future__ import annotations

from typing import Literal, get_args

from attacks.counted import Ranker, covisits, popularity
from attacks.finetune import of_pairs, retrained, tuned
from models.recommender import Recommender, given

Update = Literal["poison", "replay", "scratch"]
EPOCHS = 10
"""Passes of a fine-tuning when nothing is said; the paper states none."""


def ranker(
    model: Recommender, *, update: Update = "poison", epochs: int = EPOCHS, batch: int | None = None
) -> Ranker:
    """How `model` is updated and read.

    Args:
        model: any recommender of `models`.
        update: "poison": fine-tuned on the attackers' clicks, its optimizer fresh; "replay": with the last clicks of
            as many real users, drawn anew, among them; "scratch": trained again on everything.
        epochs: passes over the clicks of a fine-tuning, >= 1; other than 10 only where there is one.
        batch: clicks of a step of it, >= 1; None: the model's own.

    Raises:
        ValueError: an unknown `update`, or an option that has no meaning for the model.
    """
    if update not in get_args(Update):
        raise ValueError(f"update is {update!r}; expected one of {', '.join(map(repr, get_args(Update)))}")
    for name, value in {"ft_epochs": epochs, **given(ft_batch=batch)}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an integer >= 1")
    if batch is not None and (update == "scratch" or not of_pairs(model)):
        raise ValueError(
            f"ft_batch={batch}: {model.name} is not fine-tuned by batches of clicks here; leave it out"
        )
    counted = model.name in ("itempop", "covisitation")
    if epochs != EPOCHS and (counted or update == "scratch"):
        raise ValueError(
            f"ft_epochs={epochs}: {model.name} is not fine-tuned here but {'counts' if counted else 'trained again'}; "
            "leave it out"
        )
    if counted:
        if update != "poison":
            raise ValueError(
                f"update={update!r}: {model.name} only counts and adds the clicks exactly; leave it out"
            )
        return popularity() if model.name == "itempop" else covisits(model)
    if update == "replay" and model.name == "autorec":
        raise ValueError(
            'update="replay": autorec learns whole rows, and would learn from the last clicks of a user that there '
            'were no others; use "poison" or "scratch"'
        )
    if update == "scratch":
        return retrained(model)
    return tuned(model, update == "replay", epochs, batch)
