"Adaptation: what is filled in, what is carried over and what is left alone."
import json

import numpy as np
import pytest
import torch
from torch import nn

from semgbook.adaptation import (AdaptationError, CarriedOver, adapted_front_end, adapted_samples, bin_frequencies, bin_reading, block_levels, carry_over,
                                 encoder_frames, fill_bands, mirror_band, recalibrate, session_gain, spread_electrodes, trained_bins)
from semgbook.charset import FINGERS, FINGERS_NO_REST, QWERTY
from semgbook.ctc import CTCHead
from semgbook.encoders import build_encoder
from semgbook.features import build_front_end, zero_padding
from semgbook.session import open_session, write_session
from semgbook.transfer import Checkpoint, TransferError, save_checkpoint

LINE = "norm mlp(features=6) gru(hidden=5)"


class Toy(nn.Module):
    "Front end, encoder and head, put together as a model is."
    def __init__(self, charset=QWERTY, n_fft=64, hop=16, line=LINE, n_channels=4, seed=0, front_end="log_spectrogram"):
        super().__init__()
        torch.manual_seed(seed)
        self.front_end = build_front_end(front_end, n_fft=n_fft, hop=hop)
        self.encoder = build_encoder(line, 2, n_channels, self.front_end.n_freqs)
        self.head = CTCHead(self.encoder.out_features, charset.n_classes)
        for buffer in self.buffers():
            if buffer.is_floating_point(): buffer.uniform_(0.5, 2)

    def forward(self, signal, lengths):
        frames, lengths = self.front_end(signal), self.front_end.out_lengths(lengths)
        return self.head(self.encoder(zero_padding(frames, lengths), lengths), self.encoder.out_lengths(lengths))


def card(**changes):
    return dict(source="old", charset="qwerty", rate_hz=2000.0, recipe=dict(encoder=LINE, front_end=dict(name="log_spectrogram", n_fft=64, hop=16))) | changes


def snapshot(model): return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model, before): return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- electrodes and bands ---------------------------------------------------------------------------------------------

def test_spreading_keeps_the_ring():
    x = torch.randn(2, 30, 2, 8)
    assert torch.equal(spread_electrodes(x, 8), x) and spread_electrodes(x, 8) is x
    tiled, between = spread_electrodes(x, 16), spread_electrodes(x, 16, "interpolate")
    assert torch.equal(tiled[..., 8:], x) and torch.equal(tiled[..., :8], x)
    assert torch.equal(between[..., ::2], x)
    torch.testing.assert_close(between[..., 1::2], (x + x.roll(-1, -1)) / 2)
    with pytest.raises(AdaptationError, match="'copy'.*tile or interpolate"): spread_electrodes(x, 16, "copy")


def test_the_mirror_turns_the_ring_round():
    ring = torch.arange(8)
    assert mirror_band(ring).tolist() == [0, 7, 6, 5, 4, 3, 2, 1]
    x = torch.randn(3, 20, 8)
    assert torch.equal(mirror_band(mirror_band(x)), x)
    assert torch.equal(mirror_band(x.roll(1, -1)), mirror_band(x).roll(-1, -1))  # turning one way is turning the other way in the mirror


@pytest.mark.parametrize("silent", [0, 1])
def test_only_a_silent_band_beside_another_is_filled(silent):
    x = torch.randn(5, 30, 2, 8)
    x[0, :, silent] = 0
    x[1] = 0
    x[2, :29, silent] = 0  # not at all times
    x[3, :, silent, :7] = 0  # not at all electrodes
    before = x.clone()
    y = fill_bands(x, "mirror")
    assert torch.equal(y[0, :, silent], mirror_band(x[0, :, 1 - silent])) and torch.equal(y[0, :, 1 - silent], x[0, :, 1 - silent])
    assert torch.equal(y[1:], x[1:]) and torch.equal(x, before)
    assert torch.equal(fill_bands(x), x) and torch.equal(fill_bands(x, "zeros"), x)


def test_filling_says_what_it_needs():
    with pytest.raises(AdaptationError, match="'copy'.*zeros or mirror"): fill_bands(torch.zeros(1, 3, 2, 8), "copy")
    with pytest.raises(AdaptationError, match="two bands"): fill_bands(torch.zeros(1, 3, 1, 8), "mirror")


# --- rates --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, rate_from, rate_to, wanted", [(64, 2000, 200, 6), (16, 2000, 200, 2), (8000, 2000, 200, 800), (6, 200, 2000, 60), (1, 2000, 200, 1), (7, 500, 500, 7)])
def test_samples_of_the_same_duration(n, rate_from, rate_to, wanted):
    assert adapted_samples(n, rate_from, rate_to) == wanted


def test_front_ends_for_a_rate():
    assert adapted_front_end(200) == dict(n_fft=6, hop=2) and adapted_front_end(200, "samples") == dict(n_fft=64, hop=16)
    for rate in (20, 100, 200, 500, 1000, 2000, 4000):
        front_end = build_front_end("log_spectrogram", **adapted_front_end(rate))  # always one that can be built
        assert rate < 200 or abs(front_end.n_fft / rate - 0.032) < 0.5 / rate + 1e-9
    with pytest.raises(AdaptationError, match="'seconds'.*samples or milliseconds"): adapted_front_end(200, "seconds")
    with pytest.raises(AdaptationError, match="above 0 Hz"): adapted_samples(64, 2000, 0)


GRIDS = {"same": (64, 2000), "short": (6, 200), "fine": (64, 200), "coarse": (16, 2000), "half": (32, 1000), "longer": (128, 2000), "wide": (64, 8000)}


@pytest.mark.parametrize("name", GRIDS)
def test_bins_are_read_by_their_neighbours_in_hertz(name):
    old, new = bin_frequencies(64, 2000), bin_frequencies(*GRIDS[name])
    reading = bin_reading(old, new)
    step = max(old[1], new[1])
    rows, columns = reading.nonzero().T
    assert reading.shape == (len(old), len(new)) and ((old[rows] - new[columns]).abs() <= 0.5 * step + 1e-6).all()
    total = reading.sum(1)
    assert ((total - 1).abs() < 1e-12).logical_or(total == 0).all()
    assert torch.equal(total > 0, (old[:, None] - new).abs().amin(1) <= 0.5 * step + 1e-6)  # a bin with a neighbour reads it
    if name == "same": assert torch.equal(reading, torch.eye(33, dtype=torch.float64))
    if name in ("same", "fine", "longer"): assert (reading.sum(0) > 0).sum() == ((new[:, None] - old).abs().amin(1) <= 0.5 * step + 1e-6).sum()  # and no new bin is idle


def test_bins_by_hand():
    old = torch.tensor([0.0, 10, 20, 30])
    assert bin_reading(old, torch.tensor([0.0, 20])).tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]  # coarser: the nearest, the lower of two
    assert bin_reading(old, torch.tensor([0.0, 10])).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]  # what is not there is not read
    finer = [[0.5, 0.5, 0, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 0, 0, 1]]
    assert bin_reading(old, torch.arange(0, 31, 5.0)).tolist() == finer
    assert bin_frequencies(6, 200).tolist() == pytest.approx([0, 100 / 3, 200 / 3, 100])


def test_trained_bins_come_from_the_card():
    assert torch.equal(trained_bins(card()), bin_frequencies(64, 2000))
    recipe = card()["recipe"]
    assert torch.equal(trained_bins(card(recipe=recipe | {"data": dict(rate_factor=4, rate_method="decimate")})), bin_frequencies(64, 500))
    assert torch.equal(trained_bins(card(recipe=recipe | {"data": dict(rate_factor=4, rate_method="hold")})), bin_frequencies(64, 2000))
    for lacking in (dict(rate_hz=None), dict(recipe=None), dict(recipe=dict(front_end=dict(name="rms", n_fft=64)))):
        with pytest.raises(AdaptationError, match="leave out rate_hz"): trained_bins(card(**lacking))


# --- carrying weights over ----------------------------------------------------------------------------------------------

def test_every_tensor_is_in_the_table_and_is_what_it_says():
    old, new = Toy(), Toy(FINGERS, 6, 2, seed=1)
    drawn = snapshot(new)
    given = {k: v for k, v in old.state_dict().items() if k != "encoder.blocks.mlp1.bands.1.0.bias"} | {"encoder.extra": torch.ones(2)}
    carried = carry_over(new, Checkpoint(given, card()), "fingers")
    rows = {r["tensor"]: r for r in carried.rows}
    assert set(rows) == set(drawn) | set(given) and len(rows) == len(carried.rows)
    for k, row in rows.items():
        now = new.state_dict().get(k)
        if row["status"] == "loaded": assert torch.equal(now, given[k]), k
        if row["status"] == "new": assert k not in given and torch.equal(now, drawn[k]), k
        if row["status"] == "dropped": assert now is None or torch.equal(now, drawn[k]), k
        assert row["ours"] == "×".join(map(str, drawn[k].shape)) if k in drawn else row["ours"] == ""
    wanted = {"encoder.extra": "dropped", "encoder.blocks.mlp1.bands.0.0.weight": "dropped", "encoder.blocks.mlp1.bands.1.0.bias": "new",
              "encoder.blocks.norm1.norm.running_mean": "loaded", "encoder.blocks.gru1.rnn.weight_ih_l0": "loaded", "head.linear.weight": "mapped"}
    assert {k: rows[k]["status"] for k in wanted} == wanted
    moved = sum(p.numel() for k, p in new.named_parameters() if rows[k]["status"] in ("loaded", "mapped"))
    assert carried.share == moved / sum(p.numel() for p in new.parameters()) and set(carried.taken) == {k for k, r in rows.items() if r["status"] in ("loaded", "mapped")}
    assert "old" in carried.summary and "1 new" in carried.summary and "\n" not in carried.summary
    again = json.loads(json.dumps(carried.to_dict()))
    assert CarriedOver(tuple(again["rows"]), again["share"], again["source"]) == carried and again["summary"] == carried.summary


def test_the_output_layer_goes_by_key():
    old = Toy()
    for charset in (FINGERS, FINGERS_NO_REST, QWERTY):
        new = Toy(charset, seed=1)
        carry_over(new, Checkpoint(old.state_dict(), card()), charset)
        rows = [*(QWERTY.keys.index(k) for k in charset.keys), QWERTY.blank]
        assert torch.equal(new.head.linear.weight, old.head.linear.weight[rows]) and torch.equal(new.head.linear.bias, old.head.linear.bias[rows])
        fresh, other = Toy(charset, seed=1), Toy(charset, seed=1)
        carried = carry_over(fresh, Checkpoint(old.state_dict(), card(charset=None)), charset, keep_keys=False)
        assert torch.equal(fresh.head.linear.weight, other.head.linear.weight) and not any(k.startswith("head.") for k in carried.taken)


@pytest.mark.parametrize("n_fft, hop, rate", [(6, 2, 200.0), (64, 10, 200.0), (32, 8, 1000.0), (128, 32, 4000.0)])
def test_the_first_layer_goes_by_frequency(n_fft, hop, rate):
    old, new = Toy().eval(), Toy(FINGERS, n_fft, hop, seed=1).eval()
    carried = carry_over(new, Checkpoint(old.state_dict(), card()), "fingers", rate_hz=rate)
    same = torch.equal(bin_frequencies(n_fft, rate), bin_frequencies(64, 2000))
    assert carried.table.set_index("tensor").status["encoder.blocks.mlp1.bands.0.0.weight"] == ("loaded" if same else "mapped")
    reading = bin_reading(bin_frequencies(64, 2000), bin_frequencies(n_fft, rate)).float()
    frames = torch.randn(1, 20, 2, 4, n_fft // 2 + 1)
    as_old = frames @ reading.T  # (1, T, B, C, 33): what the old layer would have been shown
    first = lambda model, x: model.encoder.blocks["mlp1"](x)
    with torch.no_grad(): torch.testing.assert_close(first(new, frames), first(old, as_old), atol=1e-5, rtol=1e-4)


def test_without_a_rate_shapes_decide():
    old, same, short = Toy(), Toy(FINGERS, 64, 10, seed=1), Toy(FINGERS, 6, 2, seed=1)
    name = "encoder.blocks.mlp1.bands.0.0.weight"
    assert name in carry_over(same, Checkpoint(old.state_dict(), card()), FINGERS).taken and torch.equal(same.state_dict()[name], old.state_dict()[name])
    carried = carry_over(short, Checkpoint(old.state_dict(), card()), FINGERS)
    assert name not in carried.taken and carried.table.set_index("tensor").loc[name, ["status", "ours", "given"]].tolist() == ["dropped", "6×16", "6×132"]


def test_from_a_file(tmp_path):
    old, new = Toy(), Toy(FINGERS, seed=1)
    path = save_checkpoint(tmp_path / "old.safetensors", old, card())
    assert carry_over(new, path, "fingers").share == 1 and torch.equal(new.encoder.blocks["gru1"].rnn.weight_hh_l0, old.encoder.blocks["gru1"].rnn.weight_hh_l0)


def test_after_an_error_nothing_is_changed():
    old = Toy()
    sick = {k: v * torch.nan if k == "encoder.blocks.gru1.rnn.weight_ih_l0" else v for k, v in old.state_dict().items()}
    renamed = {f"model.{k}": v for k, v in old.state_dict().items()}
    for state, options, error, words in (
            (old.state_dict(), dict(card=card(charset=None)), AdaptationError, "keep_keys=False"), (old.state_dict(), dict(card=card(charset="fingers")), TransferError, "heads for charset"),
            (old.state_dict(), dict(card=card(rate_hz=None), rate_hz=200.0), AdaptationError, "leave out rate_hz"), (sick, dict(card=card()), TransferError, "not finite"),
            (renamed, dict(card=card()), AdaptationError, "nothing of the encoder fits.*give the new model the encoder line of the old one: norm mlp")):
        new = Toy(FINGERS, seed=1)
        before = snapshot(new)
        with pytest.raises(error, match=words): carry_over(new, Checkpoint(state, options.pop("card")), "fingers", **options)
        assert unchanged(new, before)


def test_a_counter_that_fits_is_no_transfer():
    "Another architecture: only the number of batches seen has the same name and shape."
    new = Toy(FINGERS, line="norm mlp(features=9) tds(channels=3,kernel=4)", n_channels=8)
    with pytest.raises(AdaptationError, match="nothing of the encoder fits"): carry_over(new, Checkpoint(Toy().state_dict(), card()), "fingers", keep_keys=False)
    with pytest.raises(AdaptationError, match="LogRMS has no frequency bins"): carry_over(Toy(FINGERS, front_end="rms"), Checkpoint(Toy().state_dict(), card()), "fingers", rate_hz=200.0)


# --- statistics of a new user -------------------------------------------------------------------------------------------

def test_encoder_frames_are_what_the_encoder_gets():
    model, x = Toy(line="norm(mask=1) mlp(features=6) gru(hidden=5)").eval(), torch.randn(2, 500, 2, 4)
    frames, lengths = encoder_frames(model, x, torch.tensor([500, 300]))
    assert lengths.tolist() == model.front_end.out_lengths(torch.tensor([500, 300])).tolist() and frames.shape == (2, 28, 2, 4, 33)
    assert (frames[1, lengths[1]:] == 0).all() and torch.equal(frames[:1], model.front_end(x[:1]))
    assert encoder_frames(model, x)[1].tolist() == [28, 28] and not model.encoder._forward_pre_hooks
    model(x, torch.tensor([500, 300]))


@pytest.mark.parametrize("line", [LINE, "norm(mask=1) flatten gru(hidden=5)"])
def test_recalibration_moves_statistics_and_nothing_else(line):
    model = Toy(line=line).train()
    before, gains = snapshot(model), torch.tensor([[0.1, 1, 3, 10], [1, 2, 0.5, 1]])
    signals = [(torch.randn(2, 900, 2, 4) * gains, torch.tensor([900, 400])), torch.randn(1, 333, 2, 4) * gains]
    signals[0][0][1, 400:] = 0
    adapted = recalibrate(model, signals)
    assert unchanged(model, before) and model.training and not adapted.training
    changed = {k for k, v in adapted.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"encoder.blocks.norm1.norm.running_mean", "encoder.blocks.norm1.norm.running_var"}
    pieces = [signals[0][0][0], signals[0][0][1, :400], signals[1][0]]
    rows = torch.cat([model.front_end(p[None])[0] for p in pieces]).double()  # (frames, B, C, F)
    norm = adapted.encoder.blocks["norm1"].norm
    torch.testing.assert_close(norm.running_mean.double(), rows.mean((0, 3)).flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), rows.var((0, 3)).flatten(), atol=1e-5, rtol=1e-5)
    again = recalibrate(model, reversed(signals))
    torch.testing.assert_close(norm.running_var, again.encoder.blocks["norm1"].norm.running_var)


def test_recalibration_makes_two_users_of_different_gain_the_same():
    model, x, gains = Toy().eval(), 1000 * torch.randn(1, 4000, 2, 4), torch.tensor([[0.2, 1, 3, 5], [1, 2, 0.5, 1]])
    lengths = torch.tensor([4000])
    with torch.no_grad():
        one, two = (recalibrate(model, signal)(signal, lengths).log_probs for signal in (x, x * gains))
        assert (model(x, lengths).log_probs - model(x * gains, lengths).log_probs).abs().max() > 100 * (one - two).abs().max()


def test_recalibration_says_what_it_needs():
    with pytest.raises(AdaptationError, match="RollingNorm.*keeps no statistics"): recalibrate(Toy(line="rolling flatten gru(hidden=5)"), torch.randn(1, 400, 2, 4))
    with pytest.raises(AdaptationError, match="no frame"): recalibrate(Toy(), [])
    with pytest.raises(ValueError, match="a frame sees 64"): recalibrate(Toy(), torch.randn(1, 60, 2, 4))


# --- one factor per electrode -------------------------------------------------------------------------------------------

@pytest.fixture
def as_session(tmp_path):
    def make(signal, rate=100.0, name="s"):
        times = np.arange(len(signal)) / rate
        return open_session(write_session(tmp_path / f"{name}.hdf5", signal, times, [], [], [], name=name, user="u", rate_hz=rate))
    return make


def emg(seconds=150, rate=100, gains=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal((seconds * rate + 37, 2, 4)) * gains).astype(np.float32)


def test_gains_are_undone(as_session):
    gains = np.array([[0.3, 1, 2, 4], [1, 1.5, 0.7, 1]])
    factors = session_gain(as_session(emg(gains=gains)))
    undone = factors * gains
    assert factors.dtype == np.float32 and np.ptp(undone) / undone.mean() < 0.03
    assert session_gain(as_session(emg(gains=gains), name="t"), target=5.0) * gains == pytest.approx(np.full((2, 4), 5.0), rel=0.03)


def test_levels_are_those_of_blocks_however_they_are_read(as_session):
    x = emg(seconds=13)
    session = as_session(x)
    plain = np.sqrt(np.square(x[:1300].astype(np.float64)).reshape(13, 100, 2, 4).mean(1))
    for per_read in (1, 5, 60): np.testing.assert_allclose(block_levels(session, per_read=per_read), plain, rtol=1e-6)
    assert block_levels(session, block_s=0.5).shape == (26, 2, 4)
    np.testing.assert_allclose(block_levels(session, block_s=60), np.sqrt(np.square(x.astype(np.float64)).mean(0))[None], rtol=1e-6)  # shorter than a block: all of it


def test_knocks_and_pauses_do_not_count(as_session):
    calm, knocked = emg(), emg()
    knocked[3000:5000, 0, 1] *= 500
    knocked[9000:11_000, 1, 2] *= 0.01
    np.testing.assert_allclose(session_gain(as_session(knocked, name="k")), session_gain(as_session(calm)), rtol=0.05)


def test_dead_and_absent_electrodes_are_left_alone(as_session):
    gains = np.array([[1e-3, 1, 2, 1], [0, 0, 0, 0]])
    factors = session_gain(as_session(emg(gains=gains)))
    assert factors[0, 0] == 1 and (factors[1] == 1).all() and factors[0, 1] == pytest.approx(2 * factors[0, 2], rel=0.05)
    assert session_gain(as_session(emg(gains=gains), name="w"), limit=1e6)[0, 0] == pytest.approx(1000 * factors[0, 1], rel=0.05)
    with pytest.raises(AdaptationError, match="no electrode has any signal"): session_gain(as_session(0 * emg(), name="z"))
