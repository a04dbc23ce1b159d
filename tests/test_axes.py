"Length arithmetic against brute force, and against the operations themselves."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook.axes import AXES, compose_fields, describe_axes, length_mask, time_first, valid_length

FIELDS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=4)


@given(st.integers(0, 200), st.integers(1, 30), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_valid_length_counts_the_starts_that_fit(length, kernel, stride):
    expected = len([s for s in range(0, length, stride) if s + kernel <= length])
    assert valid_length(length, kernel, stride) == expected
    assert valid_length(np.array([length, 0]), kernel, stride).tolist() == [expected, 0]
    assert valid_length(torch.tensor([length, 0]), kernel, stride).tolist() == [expected, 0]


@given(FIELDS, st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_a_stack_has_the_length_of_its_composed_field(fields, length):
    n = length
    for kernel, stride in fields:
        n = valid_length(n, kernel, stride)
    assert n == valid_length(length, *compose_fields(*fields))


def test_composed_field_of_nothing_is_one_step():
    assert compose_fields() == (1, 1)
    assert compose_fields((64, 16), *[(32, 1)] * 4) == (2048, 16)


def test_valid_length_keeps_the_kind_and_the_integer_type():
    assert type(valid_length(10, 4)) is int
    assert valid_length(np.array([10], dtype=np.int32), 4, 2).dtype == np.int32
    assert valid_length(torch.tensor([10]), 4, 2).dtype == torch.int64


@pytest.mark.parametrize("raw, frames, emissions", [(10_000, 622, 498), (8_200, 509, 385), (9_880, 614, 490)])
def test_frames_and_emissions_of_the_baseline(raw, frames, emissions):
    assert valid_length(raw, 64, 16) == frames and valid_length(frames, 125) == emissions
    assert valid_length(raw, *compose_fields((64, 16), *[(32, 1)] * 4)) == emissions


def test_length_mask_sums_to_the_lengths():
    lengths = torch.tensor([0, 3, 7])
    mask = length_mask(lengths, 7)
    assert mask.dtype == torch.bool and mask.sum(1).equal(lengths)
    assert mask[1].tolist() == [True] * 3 + [False] * 4
    assert length_mask(torch.tensor([], dtype=torch.long), 4).shape == (0, 4)


def test_time_first_is_a_view_and_its_own_inverse():
    x = torch.randn(2, 5, 3)
    assert time_first(x).shape == (5, 2, 3) and time_first(time_first(x)).equal(x)
    assert time_first(x).data_ptr() == x.data_ptr() and time_first(x)[4, 1].equal(x[1, 4])


def test_axes_are_single_letters_and_described():
    assert all(len(a) == 1 for a in AXES) and list(AXES) == list("NTBCFDKL")
    assert "electrode" in describe_axes("NTBC", (1, 2, 2, 16)).splitlines()[3]
    with pytest.raises(ValueError, match="no axis is called 'X'"):
        describe_axes("NX")
    with pytest.raises(ValueError, match="4 letters but 3 sizes"):
        describe_axes("NTBC", (1, 2, 3))
