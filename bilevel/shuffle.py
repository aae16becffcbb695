"""A random order that is never written down: where each of a few places of a shuffled deck comes from.

A minibatch needs `B` entries of a permutation of `0 .. n - 1`. Sorting all `n` in every step would cost more than the
step itself; a keyed bijection gives any entry by arithmetic on its number. Bits are scrambled by a Feistel network,
which is invertible whatever its round function does; results beyond `n` are scrambled again until they fall inside
("cycle walking"), which keeps the map a bijection of `0 .. n - 1`.

References: Luby, Rackoff, SIAM J. Comput. 1988 (Feistel networks as random permutations); Black, Rogaway, CT-RSA 2002
(cycle walking).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Key, UInt

SORTED = 1 << 12  # up to here a sort is cheap, and a network of so few bits would not be uniform
ROUNDS = (
    8  # even, so that both halves get their width back; 4 are enough in theory for a perfect round function
)


def shuffled(key: Key[Array, ""], count: int, slots: Int[Array, " B"]) -> Int[Array, " B"]:
    """`order[slots]` for a random order of `0 .. count - 1`; work and memory follow `B`, not `count`.

    Args:
        key: decides the order.
        count: static, in [1, 2^31).
        slots: (B,) int32 in [0, count); a slot outside gives some number in that range.

    Raises:
        ValueError: `count` outside its range.

    **Differs from the paper:** eight rounds with murmur3's finalizer; for shuffling, not for secrets.

    >>> order = shuffled(jax.random.key(0), 5, jnp.arange(5))
    >>> sorted(order.tolist())
    [0, 1, 2, 3, 4]
    """
    if not 1 <= count < 1 << 31:
        raise ValueError(f"shuffled: count={count}; expected 1 to 2^31 - 1")
    if count <= SORTED:
        return jax.random.permutation(key, count)[slots].astype(jnp.int32)
    rounds = jax.random.bits(key, (ROUNDS,), jnp.uint32)
    bits = (count - 1).bit_length()
    widths = (bits // 2, bits - bits // 2)
    inside = jnp.clip(slots, 0, count - 1).astype(jnp.uint32)
    again = lambda places: jnp.where(places < count, places, _scramble(places, rounds, widths))
    found = lax.while_loop(lambda places: jnp.any(places >= count), again, _scramble(inside, rounds, widths))
    return found.astype(jnp.int32)


def _scramble(
    number: UInt[Array, " B"], rounds: UInt[Array, " R"], widths: tuple[int, int]
) -> UInt[Array, " B"]:
    """A bijection of the numbers of `sum(widths)` bits: each round mixes one half into the other and swaps them."""
    left, right = number >> widths[1], number & (2 ** widths[1] - 1)
    have, other = widths
    for k in range(ROUNDS):
        left, right = right, left ^ (_mix(right ^ rounds[k]) & (2**have - 1))
        have, other = other, have
    return (left << widths[1]) | right


def _mix(h: UInt[Array, " B"]) -> UInt[Array, " B"]:
    """The finalizer of murmur3: every bit of the input changes every bit of the output with probability near 1/2."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
