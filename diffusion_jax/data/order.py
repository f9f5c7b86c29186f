"""The order of training data, as a pure function of (seed, position).

Position p is the p-th sample that training reads, counted over all steps and processes. Epoch p // n visits each of the
n records once, in an order of its own. Nothing is stored: where training stands in its data is the integer p.
"""

import numpy as np

# From four rounds on, sets of ten records or more pass tests of uniformity; eight also make every order of a set of six
# equally frequent.
ROUNDS = 8

# 2⁶⁴ over the golden ratio: the increment of SplitMix64.
GOLDEN = 0x9E3779B97F4A7C15


def record_indices(seed: int, positions: np.ndarray, num_records: int) -> np.ndarray:
    """The records at some positions of the endless, shuffled sequence of epochs.

    The last batch of an epoch needs no special case: positions run on into the next epoch.

    Args:
      seed: the run's seed, 0 ≤ seed < 2³².
      positions: [P] integers ≥ 0.
      num_records: n, the number of records, 1 ≤ n < 2⁴⁸.

    Returns:
      [P] int64, each in 0 … n − 1. Over the positions e·n … (e + 1)·n − 1 of epoch e every record occurs once.
    """
    epochs, slots = np.divmod(np.asarray(positions, np.uint64), np.uint64(num_records))
    key = _mix(_mix(np.asarray([seed], np.uint64)) + epochs)
    return _permute(key, slots, num_records).astype(np.int64)


def _permute(key: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Maps `values` [P] through the permutation of 0 … size − 1 that `key` [P] names.

    An alternating Feistel network over a rows × columns ≥ size rectangle, adding modulo rows and modulo columns (Black
    and Rogaway 2002, "Ciphers with arbitrary finite domains", method FE1 and cycle walking): whatever lands outside
    0 … size − 1 goes round again, which returns inside it since the network is a permutation of the rectangle.
    """
    rows = int(np.ceil(np.sqrt(size)))
    columns = -(-size // rows)
    round_keys = [_mix(key + np.uint64((r + 1) * GOLDEN % 2**64)) for r in range(2 * ROUNDS)]
    result = values.copy()
    walking = np.arange(len(values))
    while walking.size:
        high, low = np.divmod(result[walking], np.uint64(columns))
        for r in range(0, 2 * ROUNDS, 2):
            high = (high + _mix(round_keys[r][walking] ^ low)) % np.uint64(rows)
            low = (low + _mix(round_keys[r + 1][walking] ^ high)) % np.uint64(columns)
        result[walking] = high * np.uint64(columns) + low
        walking = walking[result[walking] >= size]
    return result


def _mix(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele, Lea and Flood 2014): a bijection of uint64 whose output bits look random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
