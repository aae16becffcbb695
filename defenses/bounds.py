"""How many poisoning users a linear recommender stands, by APT's theorems: formulas to plot, not certificates.

Wu, Lian, Ge, Zhu, Chen, Yuan, *Fight fire with fire: Towards robust recommender systems via adversarial poisoning
training*, SIGIR 2021, section 4.3, Theorems 4.3-4.5. A user's rating is `r = +1` or `-1`, its features are drawn around
`r ubar` with deviation sigma, `|ubar| = sqrt(d)`, and the recommender is `f(u) = sign(vhat . u)`,
`vhat = mean r_i u_i`. With

    A = alpha sqrt(d) (2 sqrt(n) - 1) / (2 sqrt(n) + 4 sigma)        W = alpha sigma sqrt(2 ln(1 / beta))

an error of at most beta is kept, with probability at least `1 - 2 exp(-d / (8 (sigma^2 + 1)))`, against up to

    n'_none = n / (d gamma^2)                   (A - W)                                  Theorem 4.3
    n'_AT   = n / (d gamma^2 - epsilon tau)     (A - W + epsilon tau)                    Theorem 4.4
    n'_APT  = 1 / (d gamma^2)                   (n A - n W + n* gamma tau)               Theorem 4.5

poisoning users, negative numbers meaning no guarantee at all.

**Caveats.** gamma is used both as a bound on the largest entry of a user and as the radius of its set; a Gaussian has
no finite gamma; in 4.5 the helpful users are aligned with the user that is tested (`n* |u|_1 gamma`), which no fixed
set of helpful users can be for all; in 4.4 so is the change of every user in training, `sgn(r u) epsilon` with the
tested u, which no training can do for all; both put tau for that user's `|u|_1`, a minimum over the users in training
that a tested one can undercut; 4.2 defines `vhat` as a sum and 4.3 as a mean; `|ubar| = sqrt(d)` is needed by
Lemma A.2 and missing in the theorems.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class Setting(NamedTuple):
    """The constants of the theorems; each may be an array, and all broadcast.

    Attributes:
        n: real users, > 0.
        d: dimension of a user, > 0.
        sigma: deviation of the features, >= 0.
        alpha: `|vhat|`, > 0.
        gamma: bound on the entries of a poisoning user, > 0.
        beta: error that is accepted, in (0, 1).
    """

    n: Float[ArrayLike, "..."]
    d: Float[ArrayLike, "..."]
    sigma: Float[ArrayLike, "..."]
    alpha: Float[ArrayLike, "..."]
    gamma: Float[ArrayLike, "..."]
    beta: Float[ArrayLike, "..."]


def signal(setting: Setting) -> Float[Array, "..."]:
    """`A = alpha sqrt(d) (2 sqrt(n) - 1) / (2 sqrt(n) + 4 sigma)`, Lemma A.2's bound on `vhat . ubar`.

    >>> float(signal(Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01)))
    59.2...
    """
    root = 2 * jnp.sqrt(jnp.asarray(setting.n))
    return (
        jnp.sqrt(jnp.asarray(setting.d))
        * setting.alpha
        * (root - 1)
        / (root + 4 * jnp.asarray(setting.sigma))
    )


def spread(setting: Setting) -> Float[Array, "..."]:
    """`W = alpha sigma sqrt(2 ln(1 / beta))`, what the noise of a user takes away with probability beta."""
    return jnp.asarray(setting.alpha) * setting.sigma * jnp.sqrt(-2 * jnp.log(jnp.asarray(setting.beta)))


def tolerated(setting: Setting) -> Float[Array, "..."]:
    """Theorem 4.3: poisoning users that plain training stands, at least 0.

    Reference: Wu et al., SIGIR 2021, Theorem 4.3. **Differs from the paper:** a negative number is returned as 0.

    >>> round(float(tolerated(Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01))), 3)
    60.699
    """
    bound = setting.n / (setting.d * jnp.asarray(setting.gamma) ** 2) * (signal(setting) - spread(setting))
    return jnp.maximum(bound, 0)


def tolerated_adversarial(
    setting: Setting, *, epsilon: Float[ArrayLike, "..."], tau: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Theorem 4.4: the same with adversarial training; NaN where `d gamma^2 <= epsilon tau`, which it excludes.

    Args:
        setting: the constants.
        epsilon: size of the adversarial change, >= 0.
        tau: the smallest norm of a real user, > 0.

    Reference: Wu et al., SIGIR 2021, Theorem 4.4. **Differs from the paper:** a negative number is returned as 0.

    >>> setting = Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01)
    >>> round(float(tolerated_adversarial(setting, epsilon=0.05, tau=4.0)), 3)
    61.067
    """
    bound = _adversarial(setting, epsilon, tau)
    return jnp.where(jnp.isnan(bound), jnp.nan, jnp.maximum(bound, 0))


def _adversarial(setting: Setting, epsilon: ArrayLike, tau: ArrayLike) -> Array:
    """The bound of Theorem 4.4, negative ones too."""
    gain = jnp.asarray(epsilon) * tau
    room = setting.d * jnp.asarray(setting.gamma) ** 2 - gain
    return (signal(setting) - spread(setting) + gain) * (setting.n / jnp.where(room > 0, room, jnp.nan))


def tolerated_poisoning(
    setting: Setting, *, helpers: Float[ArrayLike, "..."], tau: Float[ArrayLike, "..."]
) -> Float[Array, "..."]:
    """Theorem 4.5: the same with adversarial poisoning training by `helpers` users n*.

    Reference: Wu et al., SIGIR 2021, Theorem 4.5. **Differs from the paper:** a negative number is returned as 0.

    >>> setting = Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01)
    >>> round(float(tolerated_poisoning(setting, helpers=50.0, tau=4.0)), 3)
    61.740
    """
    gamma = jnp.asarray(setting.gamma)
    inside = setting.n * (signal(setting) - spread(setting)) + helpers * gamma * tau
    return jnp.maximum(inside / (setting.d * gamma**2), 0)


def helpers_needed(
    setting: Setting, *, epsilon: Float[ArrayLike, "..."], tau: Float[ArrayLike, "..."]
) -> Array:
    """Helpful users from which on APT's bound exceeds that of adversarial training, `(n + n'_AT) epsilon / gamma`.

    Of the bounds as they are: where both are negative, the returned 0 of each says nothing.

    Reference: Wu et al., SIGIR 2021, below Theorem 4.5. **Differs from the paper:** nothing.

    >>> setting = Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01)
    >>> round(float(helpers_needed(setting, epsilon=0.05, tau=4.0)), 2)
    17.68
    """
    return (
        (_adversarial(setting, epsilon, tau) + setting.n) * jnp.asarray(epsilon) / jnp.asarray(setting.gamma)
    )


def confidence(setting: Setting) -> Float[Array, "..."]:
    """`1 - 2 exp(-d / (8 (sigma^2 + 1)))`: how likely the bounds hold, over the draw of the real users.

    >>> round(float(confidence(Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01))), 4)
    0.9634
    """
    return 1 - 2 * jnp.exp(-jnp.asarray(setting.d) / (8 * (jnp.asarray(setting.sigma) ** 2 + 1)))
