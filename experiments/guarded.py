"""A recommender behind a defense as a value: how it is trained, and what an attacker who knows of it optimizes against.

    at, apt    the defense is in the training, the attacker's as the victim's
    filter     some users are left out before the training; the attacker's fake rows are scaled by the soft side of it

A defense is only believed against an attacker who knows it. What such a one does not know is the platform's data: its
own view decides where its filter cuts, and from whom APT's helpful users are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from defenses import suspicion
from defenses.apt import Defense
from defenses.detectors import DETECTORS, EMBEDDED, OF_RATINGS, among_vectors, vectors
from defenses.filtering import filtered, flagged, soft_filter
from defenses.helped import apt_surrogate
from models.data import Interactions
from models.recommender import Recommender, one_of
from models.saved import facts
from models.train import Fitted, fit

Space = Literal["clicks", "victim"]


@dataclass(frozen=True)
class Guard:
    """A recommender hardened by its training, and a filter before it.

    Attributes:
        hardened: the recommender, or what `defenses.apt.apt` makes of it.
        detector: who leaves users out, a name of `defenses.detectors`; None: nobody.
        level: the share of users left out.
        space: where the detector looks: "clicks" is its default, "victim" the users' vectors in `hardened` trained on
            all the data first.
    """

    hardened: Recommender | Defense
    detector: str | None = None
    level: float = 0.05
    space: Space = "clicks"

    def fit(self, data: Interactions, key: Key[Array, ""]) -> Fitted:
        """The model behind its defense; a filter among the victim's vectors trains it twice, from one start."""
        if isinstance(self.hardened, Defense):
            return self.hardened.fit(data, key)
        if self.detector is not None:
            among = among_vectors(self.detector, self.hardened, key) if self.space == "victim" else None
            data, _ = filtered(data, among or {**DETECTORS, **OF_RATINGS}[self.detector], self.level)
        return fit(self.hardened, data, key)

    def check(self, data: Interactions) -> None:
        """Refuse, before anything is computed, data that the defense does not serve.

        Raises:
            ValueError: too few users, items or epochs for APT, another grid of ratings; a training that AT cannot be
                in; a model without a vector for each user.
        """
        hardened = self.hardened
        model = hardened.model if isinstance(hardened, Defense) else hardened
        inner = model.trainer(data.users, data.items, 0, data.capacity)
        if self.space == "victim":
            vectors(model, data)
        if isinstance(hardened, Defense):
            hardened.check(data)
            epochs, pretrain = inner.steps // inner.steps_per_epoch, hardened.helpers.pretrain
            if hardened.helpers.users and pretrain >= epochs:
                raise ValueError(
                    f"apt: pretrain={pretrain} epochs, but {model.name} trains for {epochs}; raise its epochs"
                )

    def known(self, view: Interactions, held: Key[Array, ""] | None = None) -> Recommender:
        """The surrogate of an attacker who knows of the defense; `hardened` is made of the attacker's own model then.

        Args:
            view: what the attacker sees of the real users.
            held: hold the helpful users that APT makes in one training of the attacker's from this key; None: they are
                renewed within the surrogate's training, in answer to the fake rows.

        Raises:
            ValueError: a filter that nobody can differentiate; a training that the defense cannot be put into, such as
                one that follows no gradient, or is over before APT begins.

        >>> from models.wrmf import wrmf
        >>> Guard(wrmf(), "duplicate").known(Interactions.from_dense([[1.0, 0], [1, 1]])).name
        'filtered-wrmf'
        """
        hardened = self.hardened
        if isinstance(hardened, Defense):
            if held is None:
                found = apt_surrogate(hardened)
            else:
                found = apt_surrogate(hardened.model, hardened.trace(view, held)[1]["rows"])
        elif self.detector is None:
            found = hardened
        elif self.detector not in suspicion.SOFT or self.space != "clicks":
            raise ValueError(
                f"nobody can differentiate through filter:{self.detector},space={self.space}; an attacker may know "
                f"{', '.join(f'filter:{name}' for name in suspicion.SOFT)}, where they look at clicks"
            )
        else:
            sought = suspicion.known(self.detector, view, self.level)
            found = soft_filter(hardened, sought.score, cut=sought.cut, temperature=sought.temperature)
        found.trainer(view.users, view.items, 1, view.capacity)  # refuses now rather than when it is traced
        return found

    def beginning(self, view: Interactions, *rows: Float[ArrayLike, "F I"]) -> Float[ArrayLike, "F I"]:
        """Where an attacker who knows of it begins: among fake rows the first from which the fewest are filtered.

        Handed those of the same attack without that knowledge first, the attacker goes on from where that one ended,
        but for a filter that stops more of them than of the others: rows far beyond its cut have no derivative of use.
        A row that passes among many that do not is given up with them.

        >>> from models.wrmf import wrmf
        >>> view = Interactions.from_dense([[1.0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 0]])
        >>> copies, others = [[1.0, 1, 0, 0, 0]], [[0.0, 0, 0, 1, 1]]
        >>> [Guard(wrmf(), by).beginning(view, copies, others) is others for by in (None, "duplicate")]
        [False, True]
        """
        if self.detector is None:
            return rows[0]
        sought = suspicion.known(self.detector, view, self.level)
        return min(
            rows, key=lambda each: float((sought.score(jnp.asarray(each, float), None) > sought.cut).mean())
        )

    def facts(self) -> dict[str, Any]:
        """What it is, in terms of JSON."""
        told = {"name": self.hardened.name, **facts(self.hardened.config)}
        filtering = {"detector": self.detector, "level": self.level, "space": self.space}
        return told if self.detector is None else told | filtering


def screened(model: Recommender, *, detector: str, level: float = 0.05, space: Space = "clicks") -> Guard:
    """`model` behind a filter: the users whom a detector finds most suspicious do not enter its training.

    Args:
        model: what is trained.
        detector: a name of `defenses.detectors`.
        level: share of users left out, in [0, 1].
        space: "clicks": the detector looks at the data; "victim": among the users' vectors in `model` trained on all of
            them first, for lof and knn.

    Raises:
        ValueError: an unknown detector, a level out of its range, or a space the detector has no use for.

    **Differs from the paper:** RevAdv and RAPU look at victims' vectors in pictures (Figs. 5); neither filters.

    >>> from models.itempop import itempop
    >>> screened(itempop(), detector="rdma", space="victim")
    Traceback (most recent call last):
    ...
    ValueError: filter:rdma looks at the data itself and has no use for space=victim; lof, knn have
    """
    import numpy as np

    one_of("filter", "detector", detector, {**DETECTORS, **OF_RATINGS})
    one_of("filter", "space", space, get_args(Space))
    if space == "victim" and detector not in EMBEDDED:
        raise ValueError(
            f"filter:{detector} looks at the data itself and has no use for space=victim; {', '.join(EMBEDDED)} have"
        )
    flagged(np.zeros(1), level)  # refuses a level
    return Guard(model, detector, level, space)
