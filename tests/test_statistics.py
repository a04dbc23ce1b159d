"Intervals: blocks add up, seeds repeat, degenerate samples are said to be so."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook.metrics import ErrorCounts, count_errors
from semgbook.statistics import bootstrap_cer, error_blocks

TEXT = st.text("abc ⌫", max_size=60)


@settings(deadline=None, max_examples=200)
@given(TEXT, TEXT, st.integers(1, 20))
def test_blocks_add_up_to_the_whole(reference, prediction, block):
    blocks, whole = error_blocks(reference, prediction, block), count_errors(reference, prediction)
    assert sum(blocks, ErrorCounts()) == whole and len(blocks) == max(-(-len(reference) // block), 1)
    assert all(b.n_reference <= block for b in blocks)


def test_interval_repeats_and_contains_the_rate():
    rng = np.random.default_rng(0)
    blocks = tuple(ErrorCounts(50, 50, wrong=int(w)) for w in rng.integers(0, 20, 60))
    low, high = bootstrap_cer(blocks)
    assert (low, high) == bootstrap_cer(blocks) != bootstrap_cer(blocks, seed=1)
    assert low < sum(blocks, ErrorCounts()).cer < high


def test_more_text_is_a_narrower_interval():
    rng = np.random.default_rng(0)
    blocks = tuple(ErrorCounts(50, 50, wrong=int(w)) for w in rng.integers(0, 20, 400))
    width = lambda b: np.ptp(bootstrap_cer(b))
    assert width(blocks) == pytest.approx(width(blocks[:100]) / 2, rel=0.3)


@pytest.mark.parametrize("blocks", [(), (ErrorCounts(5, 5),), (ErrorCounts(), ErrorCounts())])
def test_too_little_to_resample(blocks): assert bootstrap_cer(blocks) == (None, None)
