"Electrodes and samples taken away: against SciPy and the obvious formulations, chunk by chunk, and at the edges of lengths."
import numpy as np
import pytest
import torch
from scipy.signal import dlti, decimate as scipy_decimate, freqz

from semgbook.ablations import (RULES, AblationError, build_adapter, choose_electrodes, decimate_samples, hold_samples, lowpass_taps, matching_epochs)
from semgbook.augment import AugmentSettings, RawAugment, rotate_band
from semgbook.axes import compose_fields
from semgbook.features import LogSpectrogram


def seeded(seed): return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0): return torch.randn(*shape, generator=seeded(seed))


def full(x): return torch.full((len(x),), x.shape[1])


ADAPTERS = {"decimate 2": dict(factor=2), "decimate 3": dict(factor=3), "decimate 8": dict(factor=8), "hold 4": dict(factor=4, method="hold"), "hold 5": dict(factor=5, method="hold"),
            "electrodes": dict(keep=(14, 0, 3)), "both": dict(keep=(1, 9), factor=4), "held, two": dict(keep=(1, 9), factor=3, method="hold"), "nothing": {}}
adapters = pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)


# ---- electrodes

@pytest.mark.parametrize("how", RULES)
def test_electrodes_are_a_set_of_the_ring(how):
    for n in (8, 16):
        for keep in range(1, n + 1):
            for start in range(n) if how in ("every", "side") else (0,):
                chosen = choose_electrodes(n, keep, how, start, generator=3)
                assert len(set(chosen)) == len(chosen) == keep and set(chosen) <= set(range(n)) and all(type(e) is int for e in chosen)
                if keep == n: assert set(chosen) == set(range(n))


def test_every_is_as_even_as_it_can_be():
    for n in (7, 8, 16):
        for keep in range(1, n + 1):
            for start in range(n):
                chosen = choose_electrodes(n, keep, "every", start)
                gaps = np.diff([*chosen, chosen[0] + n])
                assert gaps.sum() == n and np.ptp(gaps) <= 1 and start in chosen and list(chosen) == sorted(chosen)
    assert choose_electrodes(16, 4) == (0, 4, 8, 12) and choose_electrodes(16, 8, start=1) == (1, 3, 5, 7, 9, 11, 13, 15)


def test_side_keeps_the_order_of_the_ring():
    assert choose_electrodes(16, 4, "side", 14) == (14, 15, 0, 1)
    for start in range(16):
        chosen = np.array(choose_electrodes(16, 6, "side", start))
        assert chosen[0] == start and (np.diff(chosen) % 16 == 1).all()
    assert choose_electrodes(16, 6, "side") == choose_electrodes(16, 6, "first") == tuple(range(6))


def test_random_comes_from_its_generator_only():
    draw = lambda g: choose_electrodes(16, 5, "random", generator=g)
    state = torch.random.get_rng_state()
    assert draw(1) == draw(1) and draw(seeded(4)) == draw(seeded(4)) and len({draw(i) for i in range(20)}) > 15
    assert torch.equal(torch.random.get_rng_state(), state)
    drawn = np.bincount([e for i in range(800) for e in draw(i)], minlength=16)  # 250 each
    assert (abs(drawn - 250) < 75).all() and all(list(draw(i)) == sorted(draw(i)) for i in range(5))


@pytest.mark.parametrize("wrong,words", [(dict(keep=0), "1 to 16"), (dict(keep=17), "1 to 16"), (dict(keep=4, how="even"), "every, first, side, random"), (dict(keep=4, how="first", start=2), "side"),
                                         (dict(keep=4, how="random", start=2, generator=0), "side"), (dict(keep=4, start=16), "0 to 15"), (dict(keep=4, start=-1), "0 to 15"), (dict(keep=4, how="random"), "generator=0")])
def test_wrong_choices_say_what_to_do(wrong, words):
    with pytest.raises(AblationError, match=words): choose_electrodes(16, **wrong)


def test_before_sees_the_kept_ones_only_and_after_sees_two_more():
    ring = torch.arange(16.).expand(3, 5, 1, 16).contiguous()
    turn = lambda x: rotate_band(x, torch.tensor([[-1], [0], [1]]))
    n = full(ring)
    proper, published = build_adapter(range(8)), build_adapter(range(8), after_rotation=True)
    through = lambda a: a.after(turn(a.before(ring, n)[0]), n)[0]
    assert set(through(proper).unique().tolist()) == set(range(8))
    assert set(through(published).unique().tolist()) == set(range(9)) | {15}
    assert torch.equal(through(proper)[1], through(published)[1])  # without a turn they agree


def test_removing_commutes_with_what_acts_on_each_electrode():
    x, kept = noise(3, 900, 2, 16), (14, 0, 5)
    n, a = torch.tensor([900, 700, 300]), build_adapter((14, 0, 5))
    assert torch.equal(a.before(x, n)[0], x[..., list(kept)]) and a.before(x, n)[1] is n
    front_end = LogSpectrogram()
    assert torch.allclose(front_end(a.before(x, n)[0]), front_end(x)[:, :, :, list(kept)], atol=1e-3)
    order = torch.randperm(3, generator=seeded(1))
    assert torch.equal(a.before(x[order], n[order])[0], a.before(x, n)[0][order])


def test_numbers_of_channels():
    assert build_adapter().n_channels(16) == 16 and build_adapter((3, 1)).n_channels(16) == build_adapter((3, 1), after_rotation=True).n_channels(16) == 2
    with pytest.raises(AblationError, match="0 to 7"): build_adapter((0, 8)).before(noise(1, 10, 2, 8), torch.tensor([10]))
    with pytest.raises(AblationError, match="0 to 7"): build_adapter((0, 8), after_rotation=True).after(noise(1, 10, 2, 8), torch.tensor([10]))


# ---- the filter

@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 10, 16, 20])
def test_filter_keeps_what_it_says(factor):
    taps = lowpass_taps(factor, dtype=torch.float64).numpy()
    assert len(taps) == 32 * factor + 1 and np.allclose(taps, taps[::-1], atol=0, rtol=1e-12) and abs(taps.sum() - 1) < 1e-12
    f, response = freqz(taps, worN=1 << 15)
    gain_db, f = 20 * np.log10(np.abs(response).clip(1e-12)), f / np.pi * factor  # 1: the new highest frequency
    assert gain_db[f >= 1].max() < -60 and abs(gain_db[f <= .75]).max() < .01
    delay = -np.diff(np.unwrap(np.angle(response[f <= .9]))) / (np.pi / (1 << 15))
    assert np.allclose(delay, 16 * factor, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Badly conditioned")  # SciPy normalises by the first tap, which is small
@pytest.mark.parametrize("factor", [2, 3, 4, 10])
def test_decimation_is_scipys_on_the_valid_part(factor):
    x, n = noise(2, 2003, 2, 3), torch.tensor([2003, 2003])
    y, lengths = decimate_samples(x, n, factor)
    system = dlti(lowpass_taps(factor, dtype=torch.float64).numpy(), [1.0])
    expected = scipy_decimate(x.double().numpy(), factor, ftype=system, axis=1, zero_phase=False)[:, 32:]  # causal: complete from 32 q samples on
    assert y.shape == expected.shape and (lengths == y.shape[1]).all()
    assert np.abs(y.numpy() - expected).max() < 2e-6


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_tones_above_vanish_and_tones_below_stay(factor):
    clock, tail = torch.arange(6000).double(), 1 / (2 * factor)  # cycles per sample
    tones = lambda f: torch.cos(2 * torch.pi * f * clock[:, None] + 1).float()[None, :, None]
    power = lambda x: x.square().mean((0, 1, 2))
    above, below = tones(torch.linspace(1.02 * tail, .49, 25).double()), tones(torch.linspace(.02, .75, 20).double() * tail)
    n = torch.tensor([6000])
    assert (10 * (power(decimate_samples(above, n, factor)[0]) / power(above)).log10()).max() < -60
    low, expected = decimate_samples(below, n, factor)[0], below[:, 16 * factor:-16 * factor:factor]  # on input sample q (i + 16), unchanged
    assert (low - expected).abs().max() < 2e-3
    assert (10 * (power(hold_samples(above, n, factor)[0]) / power(above)).log10()).min() > -10  # held samples keep it


def test_precision_is_not_that_of_the_network():
    x, n = noise(1, 600, 2, 4), torch.tensor([600])
    plain = decimate_samples(x, n, 4)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16): assert torch.equal(decimate_samples(x, n, 4)[0], plain)
    assert decimate_samples(x.half(), n, 4)[0].dtype == torch.float16
    with torch.inference_mode(): decimate_samples(x, n, 7)  # taps made here must serve training as well
    y = decimate_samples(x.requires_grad_(), n, 7)[0]
    y.sum().backward()


def test_hold_by_the_obvious_loop():
    x, n = noise(2, 23, 1, 2), torch.tensor([23, 10])
    y, lengths = hold_samples(x, n, 4)
    for i, length in enumerate(n.tolist()):
        for t in range(23): assert torch.equal(y[i, t], x[i, t - t % 4] if t < length else torch.zeros(1, 2))
    assert lengths is n


# ---- the adapter

def test_identity_is_the_very_tensors():
    a, x, n, f = build_adapter(), noise(2, 100, 2, 16), torch.tensor([100, 40]), noise(2, 9, 2, 16, 5)
    assert all(p is q for p, q in zip((*a.before(x, n), *a.after(x, n), *a.frames(f, n)), (x, n, x, n, f, n), strict=True))
    assert (a.stride, a.context, a.grid, a.frame_stride) == (1, 1, 1, 1) and torch.equal(a.out_lengths(n), n) and torch.equal(a.out_frames(n), n)


@pytest.mark.parametrize("options", [*ADAPTERS.values(), dict(keep=(0, 1), after_rotation=True), dict(factor=3, method="frames")])
def test_nothing_of_it_is_in_a_checkpoint(options):
    a = build_adapter(**options)
    assert not a.state_dict() and not list(a.parameters())
    torch.nn.Sequential(a).load_state_dict({})


@adapters
def test_chunks_join_to_the_full_pass(options):
    a, x = build_adapter(**options), noise(1, 2000, 2, 16)
    whole, lengths = a.before(x, full(x))
    assert int(lengths) == whole.shape[1] == a.out_lengths(2000)
    step = np.lcm(a.stride, a.grid)
    for n_chunk in (step // a.stride * 20, step // a.stride * 53):  # outputs; chunks start where a block does
        joined = []
        for first in range(0, whole.shape[1], n_chunk):
            last = min(first + n_chunk, whole.shape[1]) - 1
            piece = x[:, first * a.stride:last * a.stride + a.context]
            part, n = a.before(piece, full(piece))
            assert int(n) == part.shape[1] == last - first + 1
            joined.append(part)
        assert torch.allclose(torch.cat(joined, 1), whole, atol=1e-5)


@adapters
def test_context_is_exact(options):
    "Output i moves with some sample of its context, and with none outside."
    a, x = build_adapter(**options), noise(1, 900, 1, 16)
    i, whole = 6 * a.grid, a.before(x, full(x))[0]
    begin, end = i * a.stride, i * a.stride + a.context
    for outside in (slice(0, begin), slice(end, None)):
        other = x.clone()
        other[:, outside] = 1e3
        assert torch.allclose(a.before(other, full(x))[0][:, i], whole[:, i], atol=1e-6)
    for edge in (begin, end - 1):
        other = x.clone()
        other[:, edge] += 1e4
        assert not torch.allclose(a.before(other, full(x))[0][:, i], whole[:, i], atol=1e-6)


@adapters
def test_padding_never_arrives_and_stays_zero(options):
    a, x, lengths = build_adapter(**options), noise(4, 1500, 2, 16), torch.tensor([1500, 777, 300, 40])
    clean = x * (torch.arange(1500) < lengths[:, None])[..., None, None]
    y, n = a.before(clean, lengths)
    assert torch.equal(n, a.out_lengths(lengths)) and a.out_lengths(777) == int(n[1]) and np.array_equal(a.out_lengths(lengths.numpy()), n.numpy())
    dirty = a.before(x, lengths)[0]  # something where zeros belong
    for i, length in enumerate(n.tolist()):
        assert torch.allclose(y[i, :length], dirty[i, :length], atol=1e-6) and not y[i, length:].any()
        if options.get("factor", 1) > 1: assert not dirty[i, length:].any()
        if length: assert torch.allclose(y[i:i + 1, :length], a.before(x[i:i + 1, :lengths[i]], lengths[i:i + 1])[0], atol=1e-6) and y[i, length - 1].any()


@adapters
def test_examples_do_not_mix_and_gradients_flow(options):
    a, x = build_adapter(**options), noise(5, 700, 2, 16)
    n, order = torch.tensor([700, 650, 600, 700, 300]), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(a.before(x[order], n[order])[0], a.before(x, n)[0][order], atol=1e-6)
    x.requires_grad_()
    y, lengths = a.before(x, n)
    y[2, :lengths[2]].square().sum().backward()
    assert x.grad[2].abs().sum() > 0 and not x.grad[[0, 1, 3, 4]].any() and not x.grad[2, 600:].any()
    kept = list(options.get("keep", range(16)))
    assert x.grad[2].abs().sum((0, 1)).gt(0).nonzero().flatten().tolist() == sorted(kept)


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_frames_stay_every_so_often(factor):
    a, f, n = build_adapter(factor=factor, method="frames"), noise(3, 50, 2, 4, 5), torch.tensor([50, 8, 0])
    x = noise(3, 60, 2, 4)
    assert all(p is q for p, q in zip((*a.before(x, n), *a.after(x, n)), (x, n, x, n), strict=True)) and (a.stride, a.context) == (1, 1)
    y, lengths = a.frames(f, n)
    assert torch.equal(y, f[:, ::factor]) and y.is_contiguous() and a.frame_stride == factor
    assert lengths.tolist() == [len(range(0, k, factor)) for k in n.tolist()] and a.out_frames(8) == len(range(0, 8, factor))


def test_only_the_first_door_changes_the_rate():
    x, n, f = noise(1, 300, 2, 16), torch.tensor([300]), noise(1, 9, 2, 16, 5)
    for options in (dict(factor=2), dict(factor=2, method="hold"), dict(keep=(1, 2))):
        a = build_adapter(**options)
        assert a.after(x, n)[0] is x and a.frames(f, n)[0] is f and a.frame_stride == 1
    late = build_adapter((1, 2), after_rotation=True, factor=2)
    assert late.before(x, n)[0].shape[3] == 16 and torch.equal(late.after(x, n)[0], x[..., [1, 2]]) and late.after(x, n)[1] is n


def test_the_whole_way_chunk_by_chunk():
    "Adapter, augmentations (off), front end and dropped frames, composed: a chunk gives the frames of the full pass."
    x, front_end, raw = noise(1, 4000, 2, 16), LogSpectrogram(16, 4), RawAugment(AugmentSettings(rotation=1)).eval()

    def way(a, x):
        y, n = a.before(x, full(x))
        y, n = a.after(*raw(y, n))
        return a.frames(front_end(y), front_end.out_lengths(n))[0]

    for options in (dict(keep=(0, 8), factor=4), dict(factor=4, method="hold"), dict(factor=3, method="frames"), {}):
        a = build_adapter(**options)
        field, stride = compose_fields((a.context, a.stride), (front_end.context, front_end.stride), (1, a.frame_stride))
        whole = way(a, x)
        begin = 16 * (12 if a.grid == 4 else 1)
        chunk = way(a, x[:, begin * stride:(begin + 30 - 1) * stride + field])
        assert chunk.shape[1] == 30 and torch.allclose(chunk, whole[:, begin:begin + 30], atol=2e-3)


@pytest.mark.parametrize("wrong,words", [(dict(keep=(0, 0)), "once"), (dict(keep=(-1,)), "from 0"), (dict(keep=(0, 1.5)), "number"), (dict(factor=0), "1 or more"), (dict(factor=2.0), "whole"), (dict(factor=True), "whole"),
                                         (dict(method="skip"), "decimate, hold, frames"), (dict(after_rotation=True), "set keep")])
def test_wrong_adapters_say_what_to_do(wrong, words):
    with pytest.raises(AblationError, match=words): build_adapter(**wrong)


def test_too_short_a_signal_says_so():
    x = noise(1, 128, 2, 16)
    with pytest.raises(AblationError, match="128 samples.*129"): build_adapter(factor=4).before(x, full(x))
    longer = noise(1, 129, 2, 16)
    assert build_adapter(factor=4).before(longer, full(longer))[0].shape[1] == 1 and build_adapter(factor=4).out_lengths(128) == 0


# ---- the budget

def test_matching_epochs_take_as_many_steps_and_no_epoch_more():
    for epochs, windows, fewer, batch in ((50, 4060, 406, 32), (3, 100, 99, 32), (150, 4060, 33, 32), (7, 64, 64, 8), (1, 5, 1, 32)):
        steps = lambda n, e, batch=batch: e * -(-n // batch)
        matched = matching_epochs(epochs, windows, fewer, batch)
        assert steps(fewer, matched) >= steps(windows, epochs) > steps(fewer, matched - 1)
    with pytest.raises(AblationError, match="1 or more"): matching_epochs(50, 100, 0, 32)
