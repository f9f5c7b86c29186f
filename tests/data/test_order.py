import collections
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from diffusion_jax.data.order import record_indices


def epochs(seed: int, count: int, n: int) -> np.ndarray:
    return record_indices(seed, np.arange(count * n), n).reshape(count, n)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 9, 16, 97, 100, 1000, 1009, 65536, 65537])
def test_every_epoch_visits_every_record_once(n):
    for order in epochs(seed=3, count=3, n=n):
        np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_order_is_a_function_of_seed_and_position_alone():
    whole = record_indices(0, np.arange(1000), 37)
    some = np.array([999, 0, 36, 37, 500, 500])
    np.testing.assert_array_equal(record_indices(0, some, 37), whole[some])


def test_order_stays_what_it_was():
    """A change here would reorder the data of every run that is resumed."""
    np.testing.assert_array_equal(record_indices(0, np.arange(8), 10), [8, 5, 3, 7, 2, 9, 0, 4])
    far = record_indices(1234567, 10**15 + np.arange(4), 1_281_167)
    np.testing.assert_array_equal(far, [506478, 1051311, 521709, 592865])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = np.concatenate([epochs(seed, 20, 100) for seed in (0, 1, 2**32 - 1)])
    assert len({order.tobytes() for order in orders}) == len(orders)
    agreements = [np.sum(a == b) for a, b in itertools.combinations(orders, 2)]
    assert abs(np.mean(agreements) - 1) < 0.1  # two random orders agree in one place on average
    assert max(agreements) < 10


def test_all_orders_of_a_small_set_are_equally_frequent():
    n, count = 4, 12_000
    seen = collections.Counter(map(tuple, epochs(5, count, n).tolist()))
    assert len(seen) == math.factorial(n)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("n", [9, 64, 127])
def test_every_record_is_equally_likely_at_every_slot(n):
    count = 4000
    orders = epochs(11, count, n)
    table = np.stack([np.bincount(orders[:, slot], minlength=n) for slot in range(n)])
    chi_square = np.sum((table - count / n) ** 2 / (count / n))
    assert stats.chi2.sf(chi_square, (n - 1) ** 2) > 1e-3


@pytest.mark.parametrize("n", [100, 127])
def test_neighbours_are_unrelated(n):
    """In one epoch, and in one slot of successive epochs, the step from record to record has no preferred size."""
    orders = epochs(13, 2000, n)
    within = np.bincount((np.diff(orders, axis=1) % n).ravel(), minlength=n)
    assert within[0] == 0
    assert stats.chisquare(within[1:]).pvalue > 1e-3
    assert stats.chisquare(np.bincount((np.diff(orders, axis=0) % n).ravel(), minlength=n)).pvalue > 1e-3


def test_large_sets():
    n = 14_197_122
    indices = record_indices(0, np.arange(5 * n - 50_000, 5 * n), n)
    assert len(np.unique(indices)) == 50_000
    assert 0 <= indices.min() < indices.max() < n
    assert stats.kstest(indices / n, "uniform").pvalue > 1e-3
