"""Comparing outcomes: what is equal, what is not, and whether the words say why."""

import copy
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from autograder.compare import TOLERANCE, compare, compare_outcomes, describe
from autograder.inside.outcome import Outcome, call

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(plain)
def test_everything_equals_itself(value):
    assert compare(copy.deepcopy(value), value) is None


@given(st.floats(), st.floats(), st.sampled_from([(0.0, 0.0), (1e-4, 1e-5), (0.5, 3.0)]))
@example(math.inf, math.inf, (1e-4, 1e-5))
@example(1e308, math.inf, (0.5, 3.0))
@example(math.nan, math.nan, (0.0, 0.0))
@example(1.0001, 1.0, (1e-4, 1e-5))
def test_numbers_are_as_close_as_torch_says(actual, expected, tolerance):
    tensors = torch.tensor([actual, expected], dtype=torch.float64)
    close = torch.isclose(tensors[0], tensors[1], *tolerance, equal_nan=True)
    assert (compare(actual, expected, tolerance) is None) == bool(close)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tolerance_follows_dtype_and_is_stated_as_it_is_enforced(dtype):
    rtol, atol = TOLERANCE[dtype]
    expected = torch.full((3, 5), 100.0, dtype=dtype)
    assert compare(expected * (1 + rtol / 2), expected) is None
    off = expected.clone()
    off[1, 2] *= 1 + 8 * rtol
    difference = compare(off, expected)
    assert "1 of 15 elements differ" in difference.summary
    assert f"rtol {rtol:g}, atol {atol:g}" in difference.summary
    assert "first at [1, 2]" in difference.detail


@pytest.mark.parametrize(
    ("actual", "expected", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), "expected shape (3, 2), got (2, 3)"),
        (torch.zeros(2).double(), torch.zeros(2), "expected dtype torch.float32, got"),
        (torch.tensor([math.nan, 1.0]), torch.ones(2), "1 are NaN (expected 0)"),
        (torch.tensor([math.inf, 1.0]), torch.ones(2), "1 are infinite (expected 0)"),
        (None, torch.ones(2), "expected a tensor, got None (is a return statement missing?)"),
        ([1, 2], [1, 2, 3], "expected 3 items, got 2"),
        ([1, [2, 4]], [1, [2, 3]], "at [1][1]: a different int"),
        ({"a": 1}, {"a": 1, "b": 2}, "1 keys are missing, 0 are too many"),
        (True, 1, "expected an int, got a bool"),
        ((1,), [1], "expected a list, got a tuple"),
        ("a", "b", "a different str"),
    ],
)
def test_a_difference_says_what_differs(actual, expected, words):
    assert words in compare(actual, expected).summary


def test_a_zero_dimensional_tensor_is_a_number_where_a_number_is_asked():
    assert compare(torch.tensor(0.25), 0.25) is None
    assert compare(torch.tensor(3), 3) is None
    assert compare(0.25, torch.tensor(0.25)) is not None


def test_nan_equals_nan_and_infinities_keep_their_sign():
    assert compare(torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])) is None
    assert compare(torch.tensor([-math.inf]), torch.tensor([math.inf])) is not None
    assert compare(math.nan, math.nan) is None


def test_a_summary_names_no_value():
    secret = torch.tensor([12345.678])
    difference = compare(torch.tensor([1.0]), secret)
    assert "12345" not in difference.summary
    assert "12345" in difference.detail
    assert "12345" not in compare(1.0, 12345.678).summary


def test_an_argument_changed_in_place_is_a_difference():
    def reference(x):
        return x * 2

    def damaging(x):
        return x.mul_(2)

    good, bad = (call(f, (torch.ones(3),), {}) for f in (reference, damaging))
    assert torch.equal(good.value, bad.value)
    assert "in place" in compare_outcomes(bad, good).summary


def test_errors_are_compared_by_type():
    def refuses(x):
        raise ValueError("no targets")

    class Refusal(ValueError):
        pass

    def refuses_specially(x):
        raise Refusal("none")

    def crashes(x):
        return x / 0

    expected = call(refuses, (1,), {})
    assert compare_outcomes(call(refuses_specially, (1,), {}), expected) is None
    wrong = compare_outcomes(call(crashes, (1,), {}), expected)
    assert "should raise ValueError, but raised ZeroDivisionError" in wrong.summary
    silent = compare_outcomes(Outcome(torch.tensor(math.nan)), expected)
    assert silent.summary == "should raise ValueError, but returned a tensor"


def test_what_is_not_written_yet_is_blank():
    def unwritten(x):
        raise NotImplementedError

    assert compare_outcomes(call(unwritten, (1,), {}), Outcome(1)).blank


def test_describe_names_kinds_and_small_values():
    assert describe(torch.zeros(3, 5)) == "float32 tensor (3, 5)"
    assert describe(torch.zeros(3, 5).T) == "float32 tensor (5, 3), not contiguous"
    assert describe(-1) == "-1"
    assert describe(list(range(100))) == "list of 100"
