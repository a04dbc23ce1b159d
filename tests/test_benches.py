"Recordings, augmentations and encoders under sliders: what is drawn is what is there, and mistakes are said."
import html
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook import benches
from semgbook.augment import AugmentSettings
from semgbook.encoders import ENCODERS, EncoderError, build_encoder, encoder_facts
from semgbook.features import LogSpectrogram
from semgbook.recipes import preset
from semgbook.session import open_session, write_session


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "Forty seconds of noise at 500 Hz with 8 electrodes, a spike, and a typed line with a correction."
    path, rate = tmp_path_factory.mktemp("benches") / "noise.hdf5", 500.0
    signal = np.random.default_rng(0).normal(0, 5, (20_000, 2, 8)).astype(np.float32)
    signal[10_250, 1, 3] = 80.0
    keys = ["h", "e", "x", "Key.backspace", "l", "l", "o", "Key.space", "w"]
    times = 1e9 + 2.0 * (1 + np.arange(len(keys)))
    write_session(path, signal, 1e9 + np.arange(len(signal)) / rate, keys, times, times + 0.1, name="noise", user="nobody", rate_hz=rate)
    return open_session(path)


# --- session browser ----------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 200), st.integers(0, 2**31))
def test_envelope_keeps_the_extremes(n, columns, seed):
    signal = np.random.default_rng(seed).normal(size=(n, 2, 3))
    thin = benches.envelope(signal, columns)
    assert np.array_equal(thin.min(0), signal.min(0)) and np.array_equal(thin.max(0), signal.max(0))
    assert len(thin) <= max(2 * columns, 1) and (len(thin) == 2 * columns or np.array_equal(thin, signal))


def test_a_spike_of_one_sample_is_drawn(session):
    "Right electrode 3 at 20.5 s, in views of every width."
    for seconds in (2.0, 10.0, 20.0):
        line = benches.session_figure(session, 20.5, seconds, (0, 0), 100.0).data[1]
        lane, x = line.y.reshape(8, -1)[3], line.x.reshape(8, -1)[3]  # of eight, behind those of the left band and a free one
        assert 12 - np.nanmin(lane) == pytest.approx(0.8, abs=1e-5) and abs(x[np.nanargmin(lane)] - 20.5) < seconds / 100


def test_views_stay_inside_the_session(session):
    for now in (0.0, 0.3, 39.9, 40.0):
        fig = benches.session_figure(session, now, 6.0, (1, 7), 20.0)
        low, high = fig.layout.xaxis.range
        assert 0 <= low < high <= 40.01 and np.nanmin(fig.data[0].x) >= 0 and len(fig.data[3].z) == 33


def test_text_until_now(session):
    "The correction is applied to what was typed before; later keys come as pressed."
    bare = lambda now: benches.read_until(session, now).replace("</span></pre>", "").split(">")
    assert bare(11.0)[1].split("<")[0] == "hel" and bare(11.0)[-1] == "lo w"
    assert bare(7.0)[1].split("<")[0] == "hex" and bare(0.0)[-1] == "hex⌫llo w"


def test_keys_stand_at_their_presses(session):
    keys = benches.pressed(session, 3.0, 13.0)
    assert list(keys.text) == ["e", "x", "⌫", "l", "l"] and np.allclose(keys.x, [4, 6, 8, 10, 12])


def test_letters_of_a_row_keep_clear_of_each_other(session):
    "In every row, at every zoom; a dot only where no row has room; and what comes later moves nothing."
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.choice([0.02, 0.06, 0.15, 0.6], 300))
    text = "".join(rng.choice(list("aeim⌫⏎ W"), 300))
    wide = np.array([benches._WIDE.get(c, 10) for c in text])
    for seconds in (0.5, 3.0, 12.0, 60.0):
        rows, x = benches.letter_rows(times, text, seconds), times * benches.ACROSS / seconds
        for row in range(3):
            left, right = (x - wide / 2)[rows == row], (x + wide / 2)[rows == row]
            assert (left[1:] >= right[:-1] - 1e-9).all()
        for i in np.flatnonzero(rows != 0):
            for row in range(3 if rows[i] < 0 else rows[i]):  # each row below the chosen one is taken
                last = max(j for j in range(i) if rows[j] == row)
                assert x[last] + wide[last] / 2 > x[i] - wide[i] / 2
        assert np.array_equal(benches.letter_rows(times[:100], text[:100], seconds), rows[:100])
    assert (benches.letter_rows(times, text, 0.5) == 0).mean() > 0.9 and (benches.letter_rows(times, text, 600.0) < 0).mean() > 0.5


def test_scrolling_moves_no_letter_to_another_row(tmp_path):
    "Rows belong to the key and the zoom, not to what happens to be in view; a dot still tells its key."
    path, rate, rng = tmp_path / "fast.hdf5", 500.0, np.random.default_rng(2)
    times = 1e9 + 1 + np.cumsum(rng.uniform(0.03, 0.2, 200))
    write_session(path, np.zeros((20_000, 2, 8), np.float32), 1e9 + np.arange(20_000) / rate, list(rng.choice(list("asdfm"), 200)), times, times + 0.01, name="fast", user="nobody", rate_hz=rate)
    fast = open_session(path)
    early, late = benches.pressed(fast, 2.0, 14.0), benches.pressed(fast, 5.0, 17.0)
    rows = dict(zip(late.x, late.y, strict=True))
    shared = [(y, rows[x]) for x, y in zip(early.x, early.y, strict=True) if x in rows]
    assert len(shared) > 50 and all(a == b for a, b in shared) and {y for y, _ in shared} >= {0, 1, 2}
    everything = benches.pressed(fast, 0.0, 40.0)
    assert set(np.asarray(everything.text)[np.asarray(everything.y) < 0]) == {"·"} and set(everything.customdata) == set("asdfm") and len(everything.x) == 200


def test_browser_moves_and_plays(session):
    browser = benches.session_browser([session, session])
    browser.move(session=1, now_s=12.0, seconds=3.0)
    play = browser.box.children[0].children[0]
    assert play.value == 48 and not browser.note.value
    play.value = 50
    assert browser.values["now_s"] == 12.5 and browser.shown[0].layout.shapes[0].x0 == 12.5


# --- augmentation bench -------------------------------------------------------------------------

def test_at_rest_nothing_changes(session):
    bench = benches.augmentation_bench(session, 1.0, 4.0)
    left, right = bench.shown[0].data[:3], bench.shown[0].data[3:]
    assert all(np.array_equal(a.z, b.z) for a, b in zip(left[:2], right[:2], strict=True)) and np.array_equal(left[2].y, right[2].y)
    assert "overrides: {}" in bench.shown[1]


def test_each_slider_does_its_own():
    "Masks leave the signal, gain scales it, rotation permutes electrodes; the fields named are those that changed."
    signal, front = torch.randn(1, 2000, 2, 16), LogSpectrogram()
    off = dict(rotation=0, jitter=0, time_masks=0, time_width=25, freq_masks=0, freq_width=4, gain=0.0, noise_db=40)
    see = lambda draw=1, **changes: benches.augmented(signal, benches.settings_of(**(off | changes)), draw, front)
    plain, frames = see()
    assert benches.settings_of(**off) == AugmentSettings() and np.array_equal(plain, signal[0].numpy())
    x, masked = next((x, f) for x, f in (see(n, time_masks=8) for n in range(20)) if (f == 0).any())
    assert np.array_equal(x, plain) and not np.array_equal(masked, frames)
    ratio = see(gain=0.5)[0] / plain
    assert ratio.std() < 1e-5 and 0.5 <= ratio.mean() <= 1.5
    turned = next(x for x in (see(n, rotation=3)[0] for n in range(9)) if not np.array_equal(x, plain))
    assert np.array_equal(np.sort(turned, axis=2), np.sort(plain, axis=2))
    noisy = see(noise_db=0)[0] - plain
    assert noisy.std() == pytest.approx(plain.std(), rel=0.05)
    assert not np.array_equal(see(4, jitter=200)[0], plain)


def test_the_recipe_line_is_one(session):
    "What stands under the figure can be pasted as overrides of a recipe."
    bench = benches.augmentation_bench(session, 1.0, 4.0)
    bench.move(rotation=2, jitter=40, time_masks=3, gain=0.25)
    changes = json.loads(html.unescape(bench.shown[1]).removeprefix("<pre>overrides: ").removesuffix("</pre>"))
    made = preset("tds_embedded", changes).augment
    assert (made.rotation, made.alignment_jitter, made.n_time_masks, made.gain) == (2, 40, 3, (0.75, 1.25))


# --- architecture bench -------------------------------------------------------------------------

@pytest.mark.parametrize("name", [n for n in ENCODERS if "gpt2" not in n][::3])
def test_blocks_add_up(name):
    rows, facts = benches.block_rows(name, 16, 64, 16, 2000.0, 5.0)
    assert rows["parameters"].sum() == facts["parameters"] and rows["million MACs per second"].sum() == pytest.approx(facts["mmacs_per_s"], rel=0.02)
    last = rows.iloc[-1]
    assert last["outputs per second"] == facts["output_hz"]
    assert pd.isna(last["back (ms)"]) == (facts["field_ms"] is None)
    if facts["field_ms"]: assert last["back (ms)"] + last["ahead (ms)"] == pytest.approx(facts["field_ms"] - 32)


def test_facts_are_those_of_a_real_encoder():
    line = "norm mlp(features=32) stride(kernel=4,stride=2) gru:2(hidden=16,bidirectional=0)"
    _, facts = benches.block_rows(line, 8, 32, 10, 200.0, 4.0)
    real = build_encoder(line, 2, 8, 17)
    assert facts == encoder_facts(real, 80, 32, 10, 200.0) and facts["parameters"] == sum(p.numel() for p in real.parameters())


def test_a_wrong_line_is_pointed_at():
    bench = benches.architecture_bench(["tds", "gru_4"])
    bench.move(line="norm mlp(featurs=3)")
    assert "featurs" in bench.note.value and "^" in bench.note.value
    with pytest.raises(EncoderError): benches.block_rows("norm mlp(featurs=3)", 16, 64, 16, 2000.0, 5.0)
    bench.box.children[0].children[0].value = ENCODERS["gru_4"]  # the menu writes into the line
    assert bench.values["line"] == ENCODERS["gru_4"] and not bench.note.value and "no bound" in bench.shown[0]
