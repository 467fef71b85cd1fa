"""The order of training rows: what is seen when, and in which ratio."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_hf.training.sampler import AlternatingSampler


sizes = st.integers(1, 40)
ratios = st.floats(0.1, 4)


def epochs(sampler: AlternatingSampler, number: int) -> list[list[int]]:
    """The indices of the first epochs."""
    orders = []
    for epoch in range(number):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def retain_rows(order: list[int], num_forget: int) -> list[int]:
    """The retain rows of an order, in order."""
    return [index for index in order if index >= num_forget]


@given(num_forget=sizes, num_retain=sizes, ratio=ratios)
@settings(deadline=None, max_examples=50)
def test_every_forget_row_comes_once_per_epoch(num_forget: int, num_retain: int, ratio: float):
    for order in epochs(AlternatingSampler(num_forget, num_retain, ratio), 2):
        assert sorted(index for index in order if index < num_forget) == list(range(num_forget))


@given(num_forget=sizes, num_retain=sizes, ratio=ratios)
@settings(deadline=None, max_examples=50)
def test_retain_rows_do_not_repeat_before_all_were_seen(num_forget: int, num_retain: int, ratio: float):
    seen = []
    for order in epochs(AlternatingSampler(num_forget, num_retain, ratio), 5):
        seen += retain_rows(order, num_forget)
        times = Counter(seen)
        assert max(times.values()) == math.ceil(len(seen) / num_retain)
        assert min(times[index] for index in range(num_forget, num_forget + num_retain)) == len(seen) // num_retain


@given(num_forget=sizes, num_retain=sizes, ratio=ratios, width=st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_any_stretch_of_an_epoch_has_both_sets_in_ratio(num_forget: int, num_retain: int, ratio: float, width: int):
    order = list(AlternatingSampler(num_forget, num_retain, ratio))
    share = num_forget / len(order)
    for start in range(len(order) - width + 1):
        forget = sum(index < num_forget for index in order[start : start + width])
        assert abs(forget - width * share) <= 1 + 1e-6


@pytest.mark.parametrize(("ratio", "forget", "retain"), [(1.0, 4, 4), (3.0, 2, 6), (1 / 3, 6, 2)])
@pytest.mark.parametrize("num_retain", [5, 1000])
def test_batches_have_the_ratio_asked_for(ratio: float, forget: int, retain: int, num_retain: int):
    order = list(AlternatingSampler(48, num_retain, ratio))
    batches = [order[start : start + 8] for start in range(0, len(order), 8)]
    assert {sum(index < 48 for index in batch) for batch in batches} == {forget}
    assert {sum(index >= 48 for index in batch) for batch in batches} == {retain}


@given(num_forget=sizes, num_retain=sizes, ratio=ratios)
@settings(deadline=None, max_examples=50)
def test_length_is_the_number_of_rows(num_forget: int, num_retain: int, ratio: float):
    sampler = AlternatingSampler(num_forget, num_retain, ratio)
    assert len(list(sampler)) == len(sampler)


@pytest.mark.parametrize("num_retain", [1, 7, 1000])
def test_length_does_not_depend_on_the_retain_set(num_retain: int):
    assert len(AlternatingSampler(10, num_retain, 1.5)) == 25


def test_small_ratio_still_gives_a_retain_row():
    assert len(retain_rows(list(AlternatingSampler(3, 10, 0.01)), 3)) == 1


def test_small_retain_set_is_repeated_within_an_epoch():
    order = list(AlternatingSampler(10, 3, 1.0))
    assert sorted(Counter(retain_rows(order, 10)).values()) == [3, 3, 4]


def test_large_retain_set_is_seen_over_the_epochs():
    orders = epochs(AlternatingSampler(10, 40, 1.0), 4)
    assert sorted(index for order in orders for index in retain_rows(order, 10)) == list(range(10, 50))


def test_order_is_the_same_for_the_same_seed_and_epoch():
    assert epochs(AlternatingSampler(20, 30, 1.0, seed=5), 3) == epochs(AlternatingSampler(20, 30, 1.0, seed=5), 3)


def test_order_differs_between_epochs():
    sampler = AlternatingSampler(20, 20, 1.0)
    first, second = ([index for index in order if index < 20] for order in epochs(sampler, 2))
    assert first != second


def test_order_of_the_retain_set_differs_between_its_passes():
    first, second = (retain_rows(order, 20) for order in epochs(AlternatingSampler(20, 20, 1.0), 2))
    assert first != second


@pytest.mark.parametrize("retain", [False, True])
def test_order_differs_between_seeds(retain: bool):
    first, second = (
        [index for index in AlternatingSampler(20, 20, 1.0, seed=seed) if (index >= 20) is retain] for seed in (0, 1)
    )
    assert first != second


def test_order_of_one_set_is_not_that_of_the_other():
    order = list(AlternatingSampler(20, 20, 1.0))
    assert [index for index in order if index < 20] != [index - 20 for index in retain_rows(order, 20)]


def test_epoch_can_be_entered_directly():
    direct = AlternatingSampler(7, 11, 1.3, seed=2)
    direct.set_epoch(4)
    assert list(direct) == epochs(AlternatingSampler(7, 11, 1.3, seed=2), 5)[4]


def test_order_is_the_same_when_asked_twice():
    sampler = AlternatingSampler(20, 30, 1.0)
    assert list(sampler) == list(sampler)


# --- rows of similar lengths in a step ---


def some_lengths(number: int, seed: int = 0) -> list[int]:
    """Lengths of rows, from 5 to 100."""
    return np.random.default_rng(seed).integers(5, 101, number).tolist()


def grouped(num_forget: int, num_retain: int, ratio: float, rows_per_step: int, seed: int = 0) -> AlternatingSampler:
    """A sampler that puts rows of similar lengths together."""
    lengths = some_lengths(num_forget + num_retain)
    return AlternatingSampler(num_forget, num_retain, ratio, seed, lengths=lengths, rows_per_step=rows_per_step)


def padding(order: list[int], lengths: list[int], rows_per_batch: int) -> int:
    """Padding of the batches of an order."""
    batches = [
        [lengths[index] for index in order[first : first + rows_per_batch]]
        for first in range(0, len(order), rows_per_batch)
    ]
    return sum(len(batch) * max(batch) - sum(batch) for batch in batches)


@given(num_forget=sizes, num_retain=sizes, ratio=ratios, step=st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_grouping_changes_no_epochs_rows(num_forget: int, num_retain: int, ratio: float, step: int):
    expected = epochs(AlternatingSampler(num_forget, num_retain, ratio), 3)
    actual = epochs(grouped(num_forget, num_retain, ratio, step), 3)
    assert [sorted(order) for order in actual] == [sorted(order) for order in expected]


@given(num_forget=sizes, num_retain=sizes, ratio=ratios, step=st.integers(1, 12))
@settings(deadline=None, max_examples=100)
def test_grouped_steps_have_both_sets_in_ratio(num_forget: int, num_retain: int, ratio: float, step: int):
    order = list(grouped(num_forget, num_retain, ratio, step))
    share = num_forget / len(order)
    for first in range(0, len(order) - step + 1, step):
        forget = sum(index < num_forget for index in order[first : first + step])
        assert abs(forget - step * share) <= 2  # 1 for the window's share, 1 for the step's


@pytest.mark.parametrize(("ratio", "forget"), [(1.0, 4), (3.0, 2), (1 / 3, 6)])
@pytest.mark.parametrize("num_retain", [5, 1000])
def test_grouped_steps_have_the_ratio_asked_for(ratio: float, forget: int, num_retain: int):
    order = list(grouped(48, num_retain, ratio, rows_per_step=8))
    assert {sum(index < 48 for index in order[first : first + 8]) for first in range(0, len(order), 8)} == {forget}


@pytest.mark.parametrize(("rows_per_step", "rows_per_batch", "left"), [(16, 16, 0.35), (16, 4, 0.15)])
def test_grouped_rows_need_less_padding(rows_per_step: int, rows_per_batch: int, left: float):
    sampler = grouped(400, 400, 1.0, rows_per_step)
    by_chance = list(AlternatingSampler(400, 400, 1.0))
    padded = padding(by_chance, sampler.lengths, rows_per_batch)
    assert padding(list(sampler), sampler.lengths, rows_per_batch) < left * padded


def test_grouped_steps_are_not_ordered_by_length():
    sampler = grouped(400, 400, 1.0, 16)
    longest = [max(sampler.lengths[i] for i in list(sampler)[first : first + 16]) for first in range(0, 800, 16)]
    assert abs(np.corrcoef(longest, range(50))[0, 1]) < 0.5


def test_grouped_rows_meet_others_in_every_epoch():
    first, second = (
        {frozenset(order[i : i + 16]) for i in range(0, 800, 16)} for order in epochs(grouped(400, 400, 1.0, 16), 2)
    )
    assert not first & second


def test_rows_of_a_step_are_sorted():
    sampler = grouped(40, 40, 1.0, 16)
    lengths = [sampler.lengths[index] for index in sampler]
    assert all(lengths[i : i + 16] == sorted(lengths[i : i + 16]) for i in range(0, 80, 16))


def test_grouped_order_is_the_same_when_entered_directly():
    direct = grouped(40, 70, 1.3, 8, seed=2)
    direct.set_epoch(4)
    assert list(direct) == epochs(grouped(40, 70, 1.3, 8, seed=2), 5)[4]
