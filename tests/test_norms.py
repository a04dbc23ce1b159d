"Norms: the running statistics against a loop in float64, and what a norm must take out."
import math

import numpy as np
import pytest
import torch

import semgbook.norms
from semgbook.norms import NormError, expanding_norm, expanding_stats, frame_moments, gain_shift, in_tiles, lost_frames, merge_moments

SHAPE = (2, 3, 4)  # bands, electrodes, bins


def frames(n=3, t=300, shape=SHAPE, seed=0, dtype=torch.float32):
    return torch.randn(n, t, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def looped(x, settle, length):
    "Each frame's mean and variance from the beginning, one frame after the other, float64."
    rows = x[:length].double().numpy()
    first = min(settle, length)
    pasts = [rows[:max(t + 1, first)] for t in range(length)]
    return (torch.from_numpy(np.stack([f(p, axis=0) for p in pasts])) for f in (np.mean, np.var))


@pytest.fixture(params=[1, 7, 2**17])
def tiles(request, monkeypatch):
    "The same with tiles of one frame, of a few, and of all."
    monkeypatch.setattr(semgbook.norms, "TILE_NUMBERS", request.param * 3 * math.prod(SHAPE))
    return request.param


@pytest.mark.parametrize("settle", [1, 2, 50, 299, 300, 1000])
def test_statistics_are_those_of_a_loop(settle, tiles):
    x, lengths = 5 + 3 * frames(), torch.tensor([300, 211, 33])
    mean, var = expanding_stats(x, settle, lengths)
    assert mean.shape == var.shape == x.shape and mean.dtype == x.dtype
    for i, n in enumerate(lengths.tolist()):
        exact_mean, exact_var = looped(x[i], settle, n)
        torch.testing.assert_close(mean[i, :n].double(), exact_mean, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(var[i, :n].double(), exact_var, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("level, spread", [(0, 1), (1e4, 1e-2), (-1e7, 1.0), (1e-8, 1e-9)])
def test_no_digits_are_lost(level, spread, tiles):
    "A large mean with a small spread, and a step of a thousand spreads after the settling stretch."
    x = level + spread * frames(1, 400, dtype=torch.float64)
    x[:, 200:] += 1000 * spread
    mean, var = expanding_stats(x, 125)
    exact_mean, exact_var = looped(x[0], 125, 400)
    torch.testing.assert_close(mean[0], exact_mean, atol=0, rtol=1e-12)
    torch.testing.assert_close(var[0], exact_var, atol=0, rtol=1e-6)


def test_a_constant_has_no_variance_and_gives_zero():
    x = torch.full((1, 300, *SHAPE), 0.1)
    assert (expanding_stats(x)[1] >= 0).all() and expanding_stats(x)[1].max() < 1e-12
    assert expanding_norm(x, eps=1e-5).abs().max() < 1e-4


@pytest.mark.parametrize("settle", [1, 40])
def test_the_norm_is_the_formula(settle):
    x, lengths = frames(), torch.tensor([300, 150, 20])
    mean, var = expanding_stats(x, settle, lengths)
    y = expanding_norm(x, settle, lengths, eps=0.1)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[i, :n], (x - mean)[i, :n] / (var[i, :n] + 0.1).sqrt(), atol=2e-6, rtol=1e-5)
        assert (y[i, n:] == 0).all()


def test_a_gain_per_bin_is_taken_out_and_a_scale_nearly():
    x, shift = frames(), 3 * torch.randn(SHAPE)
    torch.testing.assert_close(expanding_norm(x + shift), expanding_norm(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(expanding_norm(4 * x, eps=1e-9), expanding_norm(x, eps=1e-9), atol=1e-5, rtol=0)
    assert (expanding_norm(4 * x) - expanding_norm(x)).abs().max() > 0.01  # eps is at work


def test_a_long_settling_stretch_standardises_the_window():
    x, lengths = 7 + 2 * frames(), torch.tensor([300, 150, 20])
    y = expanding_norm(x, 10_000, lengths, eps=0)
    for i, n in enumerate(lengths.tolist()):
        assert y[i, :n].mean(0).abs().max() < 1e-5
        torch.testing.assert_close(y[i, :n].var(0, unbiased=False), torch.ones(SHAPE), atol=1e-4, rtol=0)


def test_causal_after_the_settling_stretch():
    x, settle = frames(1), 60
    for changed, first in ((59, 0), (60, 60), (200, 200)):
        other = x.clone()
        other[:, changed] += 1
        moved = (expanding_norm(other, settle) - expanding_norm(x, settle)).abs().flatten(2).amax(2)[0] > 0
        assert torch.equal(moved, torch.arange(300) >= first)


@pytest.mark.parametrize("rubbish", [0.0, 9.0, torch.nan, torch.inf])
def test_padding_is_never_heard(rubbish, tiles):
    x, lengths = frames(), torch.tensor([300, 100, 25])
    for i, n in enumerate(lengths.tolist()): x[i, n:] = rubbish
    y, (mean, var) = expanding_norm(x, 50, lengths), expanding_stats(x, 50, lengths)
    assert y.isfinite().all() and mean.isfinite().all() and var.isfinite().all()
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(y[i:i + 1, :n], expanding_norm(x[i:i + 1, :n], 50), atol=1e-6, rtol=1e-5)
        assert (y[i, n:] == 0).all()


def test_an_example_without_frames_harms_nobody():
    x = frames()
    y = expanding_norm(x, 50, torch.tensor([300, 0, 1]))
    assert y.isfinite().all() and (y[1:] == 0).all()
    torch.testing.assert_close(y[:1], expanding_norm(x[:1], 50))


@pytest.mark.parametrize("dtype, atol", [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-12)])
def test_any_floating_type(dtype, atol):
    x = frames().to(dtype)
    y = expanding_norm(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expanding_norm(x.double()), atol=atol, rtol=0)


def test_gradients_are_right():
    x = frames(2, 12, (2,), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: expanding_norm(v, 5, torch.tensor([12, 9])), x)


def test_tiles_are_the_whole_in_order(tiles):
    x = frames()
    assert torch.equal(torch.cat([a for a, _ in in_tiles(x, lost_frames(x, 1))], 1), x)
    assert len(list(in_tiles(x))) == math.ceil(300 / min(300, tiles))


@pytest.mark.parametrize("settle", [0, -3])
def test_messages(settle):
    for function in (expanding_norm, expanding_stats):
        with pytest.raises(NormError, match=f"settle={settle}.*1 or more"): function(frames(), settle)
    with pytest.raises(NormError, match="gain=0"): gain_shift(0)


def test_gain_shift():
    assert gain_shift(1) == 0 and gain_shift(10) == 2 and gain_shift(3) == pytest.approx(math.log10(9))
    assert gain_shift(1 / 7) == pytest.approx(-gain_shift(7))


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_moments_merge_to_those_of_all(offset):
    x = offset + frames(4, 100)
    lengths = torch.tensor([100, 1, 60, 0])
    rows = torch.cat([x[i, :n] for i, n in enumerate(lengths)]).double()  # (frames, B, C, F)
    n, mean, squares = merge_moments(frame_moments(x[:1]), frame_moments(x[1:], lengths[1:]))
    assert n == 161 * 4
    torch.testing.assert_close(mean, rows.mean((0, 3)), atol=0, rtol=1e-12 if offset else 1e-9)
    torch.testing.assert_close(squares / n, rows.var((0, 3), unbiased=False), atol=0, rtol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    x, lengths = frames(4, 700), torch.tensor([700, 300, 50, 0])
    torch.testing.assert_close(expanding_norm(x.cuda(), 125, lengths.cuda()).cpu(), expanding_norm(x, 125, lengths), atol=1e-6, rtol=1e-5)
