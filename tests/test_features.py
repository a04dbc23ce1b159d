"The front end against the golden vectors, and what a reader of its page should not have to scroll past."
import json

import numpy as np
import pytest
import torch

from semgbook import features
from semgbook.features import (FRONT_ENDS, FrontEndError, LogSpectrogram, build_front_end, fill_rows, has_exact_matmul,
                               log_power_by_matmul, power_by_fft, zero_padding)

CASES = range(5)


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared("golden/transforms.npz"))


@pytest.fixture
def signal():
    return torch.randn(3, 1234, 2, 16, generator=torch.Generator().manual_seed(0)) * 5


def within_golden_tolerance(got, expected):
    "The tolerances of golden/README.md, section 3: powers against frame energy, logs absolutely, and the median."
    got, expected = (np.asarray(v, np.float64) for v in (got, expected))
    p, q = 10**expected, 10**got
    assert got.shape == expected.shape
    assert (np.abs(p - q) <= 2e-6 * np.sqrt(p * p.sum(-1, keepdims=True))).all()
    assert np.abs(got - expected).max() <= 5e-3
    assert np.median(np.abs(got - expected)) < 1e-6


@pytest.mark.parametrize("k", CASES)
def test_golden_log_spectrogram(golden, k):
    raw = torch.from_numpy(golden[f"raw_{k}"])[None]
    front_end = LogSpectrogram()
    frames = front_end(raw)
    within_golden_tolerance(frames[0], golden[f"logspec_{k}"])
    assert front_end.out_lengths(raw.shape[1]) == frames.shape[1] == len(golden[f"logspec_{k}"])


@pytest.mark.parametrize("k", CASES)
def test_golden_log_spectrogram_by_fft(golden, k):
    raw = torch.from_numpy(golden[f"raw_{k}"])[None]
    within_golden_tolerance(power_by_fft(raw, 64, 16).add(1e-6).log10()[0], golden[f"logspec_{k}"])


def test_golden_cases_are_all_used(shared):
    assert len(json.loads(shared("golden/transforms.json").read_text())["logspec"]) == len(CASES)


def test_batch_equals_each_example_alone(signal):
    front_end = LogSpectrogram()
    assert torch.equal(front_end(signal), torch.cat([front_end(x[None]) for x in signal]))


def test_frames_do_not_depend_on_the_tile(signal, monkeypatch):
    expected = LogSpectrogram()(signal)
    monkeypatch.setattr(features, "TILE", 7)
    assert torch.equal(LogSpectrogram()(signal), expected)


@pytest.mark.parametrize("n_fft,hop", [(64, 16), (64, 10), (20, 4), (33, 7)])
def test_both_ways_agree_for_any_frame(signal, n_fft, hop):
    fast = log_power_by_matmul(signal, n_fft, hop, 1e-6)
    within_golden_tolerance(fast, power_by_fft(signal, n_fft, hop).add(1e-6).log10())


def test_strided_input_is_read_as_it_is(signal):
    view = signal.transpose(2, 3).contiguous().transpose(2, 3)  # same values, other layout
    assert torch.equal(LogSpectrogram()(view), LogSpectrogram()(signal))


def test_input_is_left_alone(signal):
    before = signal.clone()
    for name in FRONT_ENDS: build_front_end(name)(signal)
    assert torch.equal(signal, before)


def test_reduced_matmul_precision_does_not_reach_the_frames(signal):
    expected = LogSpectrogram()(signal)
    try:
        torch.set_float32_matmul_precision("medium")
        assert not has_exact_matmul()
        within_golden_tolerance(LogSpectrogram()(signal), expected)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert has_exact_matmul()


@pytest.mark.parametrize("name", FRONT_ENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_casting_do_not_reach_the_frames(signal, name, dtype):
    front_end = build_front_end(name)
    expected = front_end(signal)
    with torch.autocast("cpu", dtype=dtype): frames = front_end(signal)
    assert frames.dtype == torch.float32 and torch.equal(frames, expected)
    assert torch.equal(build_front_end(name).to(dtype)(signal), expected)


def test_silence_is_the_floor():
    assert torch.allclose(LogSpectrogram()(torch.zeros(1, 100, 2, 8)), torch.tensor(-6.0))


def test_gradient_flows_to_the_signal(signal):
    x = signal[:1, :200].clone().requires_grad_()
    with torch.inference_mode(): LogSpectrogram(n_fft=48)(signal)  # tables made here must serve training too
    LogSpectrogram(n_fft=48)(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_every_front_end_keeps_the_contract(signal, name):
    front_end = build_front_end(name, n_fft=64, hop=16)
    frames = front_end(signal)
    n = front_end.out_lengths(signal.shape[1])
    assert frames.shape == (3, n, 2, 16, front_end.n_freqs) and frames.dtype == torch.float32
    assert front_end.stride == 16 and front_end.context == 64
    assert front_end.out_lengths(torch.tensor([0, 63, 64, 79, 80])).tolist() == [0, 0, 1, 1, 2]
    assert not list(front_end.parameters()) and not front_end.state_dict()
    moved = signal.clone()
    moved[:, :160] = 7.0  # a frame sees `context` samples and nothing else
    assert torch.equal(front_end(moved)[:, 10:], frames[:, 10:]) and not torch.equal(front_end(moved)[:, 9], frames[:, 9])


def test_registry_names_are_complete():
    classes = {c for c in vars(features).values() if isinstance(c, type) and issubclass(c, features.FrontEnd)} - {features.FrontEnd}
    assert set(FRONT_ENDS.values()) == classes


def test_zero_padding_touches_padding_only(signal):
    frames = LogSpectrogram()(signal)
    before, lengths = frames.clone(), torch.tensor([frames.shape[1], 20, 0])
    assert zero_padding(frames, lengths) is frames
    for n, (x, y) in enumerate(zip(frames, before, strict=True)):
        assert torch.equal(x[:lengths[n]], y[:lengths[n]]) and not x[lengths[n]:].any()


def test_fill_rows_of_a_view_equals_that_of_a_copy():
    x = torch.arange(24.0).view(2, 3, 4)
    rows = torch.tensor([[True, False, True], [False, False, True]])
    expected = torch.where(rows[..., None], torch.tensor(-1.0), x)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(fill_rows(strided, rows, -1.0), expected) and torch.equal(fill_rows(x, rows, -1.0), expected)


@pytest.mark.parametrize("make,words", [
    (lambda: LogSpectrogram()(torch.zeros(1, 63, 2, 16)), "63 samples, a frame sees 64"),
    (lambda: LogSpectrogram()(torch.zeros(100, 2, 16)), "N, T, B, C"),
    (lambda: LogSpectrogram(hop=0), "hop"),
    (lambda: build_front_end("spectrum"), "log_spectrogram"),
    (lambda: build_front_end("rms", bins=3), "bins"),
])
def test_misuse_is_refused_with_words(make, words):
    with pytest.raises(FrontEndError, match=words): make()


def test_pooled_memory_is_never_shared():
    front_end = LogSpectrogram()
    held = [front_end(torch.full((2, 500, 2, 16), float(k))) for k in range(1, 8)]
    kept = [x[:1, -1].clone() for x in held]
    views = [x[:1, -1] for x in held]
    del held
    for _ in range(8): front_end(torch.randn(2, 500, 2, 16))
    assert all(torch.equal(a, b) for a, b in zip(views, kept, strict=True))
