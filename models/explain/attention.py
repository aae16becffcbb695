"""RCF seen from one user: its scores as a function of the user's vector and of which clicks are read.

Xin, He, Zhang, Zhang, Jose, SIGIR 2019, in the form of Tran, Ghazimatin, Saha Roy, SIGIR 2021 (see `models.rcf`). The
exponentials of the attention know nothing of the user's vector, and removing a click removes its own only, so they
are made once; everything after them is a small smooth function:

    m_i(p, w) = p + sum_k alpha_k(p) (sum_j w_j e_ijk)^-smoothing sum_j w_j e_ijk q_j,        s_i = MLP(m_i * q_i)

with w_j = 1 for the clicks that are read. Influence on RCF and the attention baselines are made of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models import rcf, relational


class View(NamedTuple):
    """N items as one user with M clicks sees them: item vectors, exponentials by type and click, clicked vectors."""

    item: Float[Array, "N D"]
    mass: Float[Array, "N K+1 M"]
    clicked: Float[Array, "M D"]


def view(
    params: Any,
    data: rcf.Data,
    user: Int[Array, ""],
    items: Int[Array, " N"],
    history: Int[Array, " M"],
    real: Bool[Array, " M"],
) -> View:
    """What RCF reads of the pairs of a user and items; a clicked item does not read itself.

    Args:
        params, data: of a fitted RCF.
        user: id, may be traced.
        items: (N,) ids.
        history: (M,) the user's items, anything where `real` is False.
        real: (M,) False for padding.

    >>> import jax
    >>> from models.data import Interactions, relations
    >>> model = rcf.rcf(relations.clusters([0, 0, 1]), factors=2)
    >>> params, data = model.init(jax.random.key(0), 1, 3, 0), model.prepare(Interactions.from_dense([[1.0, 1.0, 0.0]]))
    >>> seen = view(params, data, jnp.array(0), jnp.array([0, 2]), jnp.array([0, 1]), jnp.ones(2, bool))
    >>> (seen.mass > 0).any(1).tolist()  # item 0 does not read itself
    [[False, True], [True, True]]
    """
    known = relational.table(params, data.catalog.relations)
    owner = jnp.full_like(items, user)
    mass = relational.exponentials(known, data.index, data.catalog, owner, items, jnp.full_like(items, -1))
    own = jnp.where(real, history, 0)
    return View(params["item"][items], jnp.where(real, mass[:, :, own], 0), params["item"][own])


def rated(
    params: Any,
    p: Float[Array, " D"],
    seen: View,
    kept: Float[Array, " M"] | Bool[Array, " M"],
    smoothing: float,
) -> Float[Array, " N"]:
    """Scores of the items for a user vector `p` that reads the clicks where `kept` is 1; smooth in both.

    Args:
        params, p, seen, kept, smoothing: as in `weights`.

    Reference: Xin et al., SIGIR 2019, eqs 4-10. **Differs from the paper:** see `models.rcf`.

    >>> import jax
    >>> from models.data import relations
    >>> params = rcf.rcf(relations.clusters([0, 0, 1]), factors=2).init(jax.random.key(0), 1, 3, 0)
    >>> seen = View(params["item"][1:], jnp.ones((2, 2, 1)), params["item"][:1])  # two items, one click
    >>> jax.eval_shape(lambda: rated(params, params["user"][0], seen, jnp.ones(1), 0.5)).shape
    (2,)
    """
    alpha = rcf.on_types(params, p[None])[0]
    mass = seen.mass * jnp.asarray(kept, seen.mass.dtype)
    weight = alpha * relational.smoothed(jnp.sum(mass, 2), smoothing)
    read = jnp.einsum("nk,nkm->nm", weight, mass) @ seen.clicked
    return rcf.through(params, (p + read) * seen.item)


def weights(
    params: Any, p: Float[Array, " D"], seen: View, kept: Bool[Array, " M"], smoothing: float
) -> Float[Array, "N M"]:
    """Attention of each item on each click: `sum over types of alpha_k a_ijk`, all values that are shared together.

    Args:
        params: of a fitted RCF.
        p: (D,) the user's vector.
        seen: from `view`.
        kept: (M,) clicks that are read.
        smoothing: of the recommender.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, section 4, and its code. **Differs from the paper:** nothing.
    """
    alpha = rcf.on_types(params, p[None])[0]
    mass = seen.mass * jnp.asarray(kept, seen.mass.dtype)
    weight = alpha * relational.smoothed(jnp.sum(mass, 2), smoothing)
    return jnp.einsum("nk,nkm->nm", weight, mass)
