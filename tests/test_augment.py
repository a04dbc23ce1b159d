"Augmentations against the golden vectors, by their properties on random input, and their edges."
import dataclasses
import json

import numpy as np
import pytest
import torch

from semgbook.augment import (AugmentError, AugmentSettings, RawAugment, SpectralAugment, add_noise, add_noise_snr, alignment_starts, band_rms,
                              crop, draw_crop, draw_spans, gather_ring, hide_spans, jitter_alignment, mark_spans, mask_spans, mask_spectrogram,
                              rotate_band, scale_amplitude)
from semgbook.features import LogSpectrogram

EVERYTHING = AugmentSettings(rotation=2, alignment_jitter=120, n_time_masks=3, n_freq_masks=2, gain=(0.8, 1.2), noise_snr_db=(10, 30))


def seeded(seed): return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def golden(shared): return np.load(shared("golden/transforms.npz"))


@pytest.fixture(scope="module")
def cases(shared): return json.loads(shared("golden/transforms.json").read_text())


@pytest.fixture
def signal(): return torch.randn(5, 700, 2, 16, generator=seeded(0)) * torch.tensor([5.0, 0.1])[:, None]


# ---- golden vectors, all exact

def test_golden_rotation(golden, cases):
    x = torch.from_numpy(golden["rotation_in"].astype(np.float32))
    assert len(cases["rotation"]) == 9
    offsets = torch.tensor([[c["left_offset"], c["right_offset"]] for c in cases["rotation"]])
    turned = rotate_band(x.expand(9, *x.shape).contiguous(), offsets)  # all nine in one batch
    for got, case in zip(turned, cases["rotation"], strict=True): assert np.array_equal(got, golden[case["out"]])


def test_golden_alignment(golden, cases):
    x = torch.from_numpy(golden["alignment_in"].astype(np.float32))
    d = torch.tensor([c["d"] for c in cases["alignment"]])
    assert len(d) == 7
    moved, lengths = jitter_alignment(x.expand(7, *x.shape).contiguous(), torch.full((7,), len(x)), d)
    for got, n, case in zip(moved, lengths.tolist(), cases["alignment"], strict=True):
        assert n == case["T_out"] and np.array_equal(got[:n], golden[case["out"]]) and not got[n:].any()


def spans(golden, size, limit):
    return mask_spans(torch.from_numpy(golden["specaug_u_width"]), torch.from_numpy(golden["specaug_u_start"]), size, limit)


@pytest.mark.parametrize("kind,size,limit", [("time", "frames", "time_param"), ("freq", "bins", "freq_param")])
def test_golden_mask_spans(golden, cases, kind, size, limit):
    start, stop = spans(golden, cases["specaug"][size], cases["specaug"][limit])  # (12, 2, 16)
    start, stop = (torch.where(stop > start, v, 0).numpy() for v in (start, stop))  # empty masks are stored as (0, 0)
    expected = golden[f"specaug_{kind}_range"]
    assert np.array_equal(start, expected[..., 0]) and np.array_equal(stop, expected[..., 1])


@pytest.mark.parametrize("k", range(5))
def test_golden_masks_in_a_row(golden, cases, k):
    s, combo = cases["specaug"], cases["specaug"]["combos"][k]
    u = torch.from_numpy(golden[combo["u"]]).view(-1, 2, 1, 2, 16)  # (masks, width or start, N, B, C)
    assert len(u) == combo["n_time"] + combo["n_freq"] and len(s["combos"]) == 5
    both = [mask_spans(*v.transpose(0, 1).transpose(1, 2), size, limit) if len(v) else None for v, size, limit in  # (N, M, B, C) each
            ((u[:combo["n_time"]], s["frames"], s["time_param"]), (u[combo["n_time"]:], s["bins"], s["freq_param"]))]
    x = hide_spans(torch.ones(1, *combo["mask_shape"]), *both)[0]
    mask = np.unpackbits(golden[combo["mask_packed"]])[:x.numel()].reshape(combo["mask_shape"]).astype(bool)
    assert np.array_equal(x.numpy() == s["fill"], mask)


# ---- gathering: against the obvious loop

def by_loop(x, offsets, starts):
    out = torch.zeros_like(x)
    for n, (turn, start) in enumerate(zip(offsets.tolist(), starts.tolist(), strict=True)):
        for b, (o, s) in enumerate(zip(turn, start, strict=True)): out[n, :x.shape[1] - s, b] = x[n, s:, b].roll(o, 1)
    return out


@pytest.mark.parametrize("T,reach", [(700, 120), (700, 0), (60, 59), (60, 60), (60, 200)])
@pytest.mark.parametrize("B,C", [(2, 16), (2, 8), (1, 5), (3, 4)])
def test_gather_equals_a_loop(T, reach, B, C):
    x = torch.randn(7, T, B, C, generator=seeded(T))
    offsets, starts = torch.randint(-C, C + 1, (7, B), generator=seeded(1)), torch.randint(min(reach, T) + 1, (7, B), generator=seeded(2))
    assert torch.equal(gather_ring(x, offsets, starts, reach), by_loop(x, offsets, starts))


def test_gather_reads_strided_input(signal):
    other_layout = signal.transpose(1, 3).contiguous().transpose(1, 3)
    offsets, starts = torch.full((5, 2), 3), torch.tensor([[0, 9]]).expand(5, 2)
    assert torch.equal(gather_ring(other_layout, offsets, starts, 9), gather_ring(signal, offsets, starts, 9))


def test_rotation_is_undone_and_keeps_energy(signal):
    offsets = torch.randint(-20, 21, (5, 2), generator=seeded(3))
    turned = rotate_band(signal, offsets)
    assert torch.equal(rotate_band(turned, -offsets), signal) and not torch.equal(turned, signal)
    assert torch.equal(turned.sort(-1).values, signal.sort(-1).values)


def test_rotation_commutes_with_the_front_end(signal):
    offsets = torch.tensor([[1, 0], [0, -1], [2, 3], [-5, 5], [0, 0]])
    before, after = LogSpectrogram()(rotate_band(signal, offsets)), LogSpectrogram()(signal)
    for x, y, turn in zip(before, after, offsets.tolist(), strict=True):
        assert torch.allclose(x, torch.stack([y[:, b].roll(o, 1) for b, o in enumerate(turn)], 1), atol=5e-3)


def test_jitter_of_unequal_lengths_never_shows_padding(signal):
    lengths, shifts = torch.tensor([700, 300, 150, 100, 0]), torch.tensor([-60, 60, -120, 120, 5])
    for x, n in zip(signal, lengths.tolist(), strict=True): x[n:] = 0
    moved, shorter = jitter_alignment(signal, lengths, shifts, reach=120)
    assert shorter.tolist() == [640, 240, 30, 0, 0]
    for x, y, n, s in zip(signal, moved, shorter.tolist(), alignment_starts(shifts).tolist(), strict=True):
        assert all(torch.equal(y[:n, b], x[s[b]:s[b] + n, b]) for b in range(2)) and not y[n:].any()


def test_crop_leaves_the_core(signal):
    context = torch.tensor([[200, 20], [200, 0], [0, 20], [0, 0], [50, 50]])
    for seed in range(20):
        taken = draw_crop(context, (100, 30), seeded(seed))
        assert (taken <= context).all() and (taken <= torch.tensor([100, 30])).all() and (taken >= 0).all()
        y, lengths = crop(signal, torch.full((5,), 700), *taken.T)
        for n, ((before, after), (l, r)) in enumerate(zip(context.tolist(), taken.tolist(), strict=True)):
            assert lengths[n] == 700 - l - r and torch.equal(y[n, before - l:700 - after - l], signal[n, before:700 - after])
    most = torch.stack([draw_crop(torch.full((1, 2), 9), (2, 3), seeded(s))[0] for s in range(200)])
    assert most.amax(0).tolist() == [2, 3] and most.amin(0).tolist() == [0, 0]


# ---- gain and noise

@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 16)])
def test_gain_is_linear_and_undone(signal, shape):
    gains = torch.rand(shape, generator=seeded(0)) + 0.5
    scaled = scale_amplitude(signal, gains)
    assert torch.allclose(scale_amplitude(scaled, 1 / gains), signal)
    assert torch.allclose(scaled, signal * gains.view(5, 1, *(shape[1:] + (1,) * (3 - len(shape)))))


def test_noise_has_the_standard_deviation_asked_for(signal):
    std = torch.tensor([0.0, 0.01, 0.03, 1.0, 5.0])
    noise = add_noise(torch.zeros_like(signal), std, seeded(0))
    assert torch.allclose(noise.std((1, 2, 3)), std, rtol=0.03) and noise.mean().abs() < 0.1
    assert torch.equal(add_noise(signal, std, seeded(0))[0], signal[0])


def test_noise_ratio_counts_valid_samples_only(signal):
    lengths, asked = torch.tensor([700, 350, 100, 700, 700]), torch.tensor([0.0, 10, 20, 30, -6])
    for x, n in zip(signal, lengths.tolist(), strict=True): x[n:] = 0
    signal[3, :, 1] = 0  # an empty band
    noise = add_noise_snr(signal, lengths, asked, seeded(1)) - signal
    measured = 20 * (band_rms(signal, lengths) / noise.square().mean((1, 3)).sqrt()).log10()
    assert (measured - asked[:, None])[[0, 1, 2, 4]].abs().max() < 0.2
    assert not noise[3, :, 1].any() and (measured[3, 0] - 30).abs() < 0.2


# ---- masks

def test_masks_obey_the_law():
    lengths = torch.tensor([600, 100, 30] * 300)
    starts, stops = draw_spans((900, 3, 2, 16), lengths.view(-1, 1, 1, 1), 25, seeded(0))
    width = stops - starts
    assert width.min() == 0 and width.max() == 24 and starts.min() == 0
    assert (stops <= lengths.view(-1, 1, 1, 1)).all()  # never beyond an example's own end
    used = (width > 0).any(-1).any(-1).sum(1)
    assert ((torch.bincount(used, minlength=4) / 900 - 0.25).abs() < 0.05).all()
    assert (starts[used == 3, 0].flatten(1).std(1) > 0).all()  # another place on every electrode
    bins = draw_spans((900, 2, 2, 16), 33, 4, seeded(1))
    assert (bins[1] - bins[0]).max() == 3 and bins[1].max() == 32  # the start is rounded down from less than 33 - w, so the very last bin stays


def test_an_example_shorter_than_a_mask_is_handled():
    x = mask_spectrogram(torch.ones(40, 30, 2, 8, 33), torch.tensor([0, 1, 5, 12] * 10), generator=seeded(0))
    assert torch.isfinite(x).all() and set(x.unique().tolist()) == {0.0, 1.0}


def test_masks_work_in_place_and_leave_the_rest(signal):
    frames = LogSpectrogram()(signal)
    before, lengths = frames.clone(), torch.full((5,), frames.shape[1])
    assert mask_spectrogram(frames, lengths, generator=seeded(0)) is frames
    assert torch.equal(frames[frames != 0], before[frames != 0]) and 0 < (frames == 0).float().mean() < 0.6
    assert torch.equal(mask_spectrogram(before.clone(), lengths, generator=seeded(0)), frames)


def test_mark_spans_is_the_union():
    starts, stops = torch.tensor([[1.0, 4, 9]]).view(1, 3, 1, 1), torch.tensor([[3.0, 4, 10]]).view(1, 3, 1, 1)
    assert mark_spans(starts, stops, 10).flatten().nonzero().flatten().tolist() == [1, 2, 9]


# ---- modules

@pytest.mark.parametrize("setting", [{"rotation": 1}, {"alignment_jitter": 120}, {"gain": (0.8, 1.2)}, {"noise_std": (0.01, 0.03)},
                                     {"noise_snr_db": (10, 30)}, {"crop": (100, 30)}])
def test_each_raw_setting_works_alone(signal, setting):
    module, lengths = RawAugment(AugmentSettings(**setting)), torch.tensor([700, 700, 500, 300, 300])
    for x, n in zip(signal, lengths.tolist(), strict=True): x[n:] = 0
    before, context = signal.clone(), torch.tensor([[100, 30]]).expand(5, 2)
    run = lambda seed: module(signal, lengths, seeded(seed), context)
    (x, n), (again, _), (other, _) = run(0), run(0), run(1)
    assert torch.equal(signal, before) and torch.equal(x, again) and not torch.equal(x, other)
    assert not any(y[m:].any() for y, m in zip(x, n.tolist(), strict=True)) and (n <= lengths).all()
    assert module.eval()(signal, lengths, seeded(0)) == (signal, lengths)


def test_everything_together_is_seeded_and_off_at_evaluation(signal):
    raw, spectral, lengths = RawAugment(EVERYTHING), SpectralAugment(EVERYTHING), torch.full((5,), 700)

    def run(seed):
        g = seeded(seed)
        x, n = raw(signal, lengths, g)
        n = LogSpectrogram().out_lengths(n)
        return spectral(LogSpectrogram()(x), n, g)

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))
    raw.eval(), spectral.eval()
    assert torch.equal(run(0), LogSpectrogram()(signal)) and raw(signal, lengths)[0] is signal


def test_global_random_stream_is_not_touched(signal):
    state = torch.get_rng_state()
    RawAugment(EVERYTHING)(signal, torch.full((5,), 700), seeded(0))
    SpectralAugment(EVERYTHING)(LogSpectrogram()(signal), torch.full((5,), 40), seeded(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_change_nothing(signal):
    lengths, frames = torch.full((5,), 700), LogSpectrogram()(signal)
    assert RawAugment(AugmentSettings())(signal, lengths)[0] is signal
    assert torch.equal(SpectralAugment(AugmentSettings())(frames.clone(), torch.full((5,), frames.shape[1])), frames)


def test_jitter_and_rotation_are_uniform_and_independent():
    clicks = torch.zeros(4000, 30, 2, 4)
    clicks[:, 15, 0, 0] = clicks[:, 15, 1, 2] = 1
    x, _ = RawAugment(AugmentSettings(rotation=1, alignment_jitter=2))(clicks, torch.full((4000,), 30), seeded(0))
    when, where = x.sum(3).argmax(1), x.sum(1).argmax(2)  # (N, B) each
    shift = when[:, 1] - when[:, 0]
    turn = (where - torch.tensor([0, 2]) + 1) % 4
    cells = torch.bincount(((shift + 2) * 3 + turn[:, 0]) * 3 + turn[:, 1], minlength=45).float()
    assert len(cells) == 45 and ((cells - 4000 / 45) ** 2 / (4000 / 45)).sum() < 85  # chi-square, 44 degrees of freedom, p > 0.0002


def test_settings_survive_json():
    restored = AugmentSettings(**json.loads(json.dumps(dataclasses.asdict(EVERYTHING))))
    assert restored == EVERYTHING and hash(restored) == hash(EVERYTHING)
    assert all(f.default == getattr(AugmentSettings(), f.name) for f in dataclasses.fields(AugmentSettings))


@pytest.mark.parametrize("make,words", [
    (lambda: AugmentSettings(rotation=-1), "rotation"),
    (lambda: AugmentSettings(alignment_jitter=1.5), "alignment_jitter"),
    (lambda: AugmentSettings(gain=(1.2, 0.8)), "lower number"),
    (lambda: AugmentSettings(gain=(0, 1)), "gain"),
    (lambda: AugmentSettings(noise_std=0.01), "two numbers"),
    (lambda: AugmentSettings(noise_std=(0.01, 0.03), noise_snr_db=(10, 20)), "two ways"),
    (lambda: AugmentSettings(crop=(0.5, 1.5)), "whole samples"),
    (lambda: RawAugment(AugmentSettings(crop=(10, 10)))(torch.zeros(1, 100, 2, 4), torch.tensor([100])), "context"),
    (lambda: RawAugment(AugmentSettings(alignment_jitter=3))(torch.zeros(1, 100, 1, 4), torch.tensor([100])), "two bands"),
])
def test_misuse_is_refused_with_words(make, words):
    with pytest.raises(AugmentError, match=words): make()
