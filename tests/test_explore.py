"Pages with controls: what they draw, that moving a control is drawing anew, and that mistakes are said."
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook import explore
from semgbook.augment import AugmentSettings
from semgbook.charset import QWERTY
from semgbook.encoders import ENCODERS, EncoderError, build_encoder, encoder_facts
from semgbook.features import LogSpectrogram
from semgbook.metrics import align, count_errors
from semgbook.runs import run_state
from semgbook.session import open_session, write_session
from semgbook.statistics import Scored, compare
from semgbook.synthetic import LAYOUT, embedded_corpus, project_root


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "Forty seconds of noise at 500 Hz with 8 electrodes, a spike, and a typed line with a correction."
    path, rate = tmp_path_factory.mktemp("explore") / "noise.hdf5", 500.0
    signal = np.random.default_rng(0).normal(0, 5, (20_000, 2, 8)).astype(np.float32)
    signal[10_250, 1, 3] = 80.0
    keys = ["h", "e", "x", "Key.backspace", "l", "l", "o", "Key.space", "w"]
    times = 1e9 + 2.0 * (1 + np.arange(len(keys)))
    write_session(path, signal, 1e9 + np.arange(len(signal)) / rate, keys, times, times + 0.1, name="noise", user="nobody", rate_hz=rate)
    return open_session(path)


# --- the panel ----------------------------------------------------------------------------------

def counting():
    "A panel that counts its drawings, and the list of values it drew."
    import ipywidgets as W
    drawn = []

    def draw(height, name):
        if height < 0: raise ValueError(f"height is {height}: give 0 or more")
        if height == 13: raise ZeroDivisionError("a fault")
        drawn.append((height, name))
        return [go.Figure(go.Bar(y=np.array([float(height)]))), f"<b>{name}</b>"]
    return explore.Panel(draw, {"height": W.IntSlider(1, -20, 20), "name": W.Text("a")}), drawn


def on_screen(picture):
    "What the browser is told to draw."
    return json.loads(picture.spec)


def test_a_move_draws_once_and_reaches_the_screen():
    panel, drawn = counting()
    panel.move(height=5)
    panel.move(height=5)  # no change, no drawing
    panel.controls["name"].value = "b"
    assert drawn == [(1, "a"), (5, "a"), (5, "b")]
    assert on_screen(panel.views[0]) == json.loads(panel.shown[0].to_json()) and panel.views[1].value == "<b>b</b>"


def test_a_mistake_is_said_and_the_picture_stays():
    panel, _ = counting()
    panel.move(height=7)
    before = panel.views[0].spec
    panel.move(height=-3)
    assert "give 0 or more" in panel.note.value and panel.views[0].spec == before
    panel.move(height=8)
    assert panel.note.value == "" and panel.views[0].spec != before


def test_a_fault_of_the_program_is_not_hidden():
    panel, _ = counting()
    with pytest.raises(ZeroDivisionError): panel.move(height=13)


def test_what_is_shown_does_not_depend_on_the_way():
    one, _ = counting()
    other, _ = counting()
    one.move(height=3, name="x")
    for height in (9, -4, 2): other.move(height=height)
    other.move(name="y")
    other.move(name="x", height=3)
    assert [v.spec if hasattr(v, "spec") else v.value for v in one.views] == [v.spec if hasattr(v, "spec") else v.value for v in other.views] and other.note.value == ""


def test_a_panel_shows_itself_with_and_without_python():
    bundle = counting()[0]._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"
    json.dumps(bundle)


def test_saved_state_is_small():
    "Plotly's library is not part of what a saved page keeps of a figure."
    state = explore.Picture(go.Figure(go.Scatter(y=[1, 2]))).get_state()
    assert len(json.dumps({k: v for k, v in state.items() if isinstance(v, str)})) < 50_000


# --- session browser ----------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 200), st.integers(0, 2**31))
def test_envelope_keeps_the_extremes(n, columns, seed):
    signal = np.random.default_rng(seed).normal(size=(n, 2, 3))
    thin = explore.envelope(signal, columns)
    assert np.array_equal(thin.min(0), signal.min(0)) and np.array_equal(thin.max(0), signal.max(0))
    assert len(thin) <= max(2 * columns, 1) and (len(thin) == 2 * columns or np.array_equal(thin, signal))


def test_a_spike_of_one_sample_is_drawn(session):
    "Right electrode 3 at 20.5 s, in views of every width."
    for seconds in (2.0, 10.0, 20.0):
        line = explore.session_figure(session, 20.5, seconds, (0, 0), 100.0).data[1]
        lane, x = line.y.reshape(8, -1)[3], line.x.reshape(8, -1)[3]  # of eight, behind those of the left band and a free one
        assert 12 - np.nanmin(lane) == pytest.approx(0.8, abs=1e-5) and abs(x[np.nanargmin(lane)] - 20.5) < seconds / 100


def test_views_stay_inside_the_session(session):
    for now in (0.0, 0.3, 39.9, 40.0):
        fig = explore.session_figure(session, now, 6.0, (1, 7), 20.0)
        low, high = fig.layout.xaxis.range
        assert 0 <= low < high <= 40.01 and np.nanmin(fig.data[0].x) >= 0 and len(fig.data[3].z) == 33


def test_text_until_now(session):
    "The correction is applied to what was typed before; later keys come as pressed."
    bare = lambda now: explore.read_until(session, now).replace("</span></pre>", "").split(">")
    assert bare(11.0)[1].split("<")[0] == "hel" and bare(11.0)[-1] == "lo w"
    assert bare(7.0)[1].split("<")[0] == "hex" and bare(0.0)[-1] == "hex⌫llo w"


def test_keys_stand_at_their_presses(session):
    keys = explore.pressed(session, 3.0, 13.0)
    assert list(keys.text) == ["e", "x", "⌫", "l", "l"] and np.allclose(keys.x, [4, 6, 8, 10, 12])


def test_browser_moves_and_plays(session):
    browser = explore.session_browser([session, session])
    browser.move(session=1, now_s=12.0, seconds=3.0)
    play = browser.box.children[0].children[0]
    assert play.value == 48 and not browser.note.value
    play.value = 50
    assert browser.values["now_s"] == 12.5 and browser.shown[0].layout.shapes[0].x0 == 12.5


# --- augmentation bench -------------------------------------------------------------------------

def test_at_rest_nothing_changes(session):
    bench = explore.augmentation_bench(session, 1.0, 4.0)
    left, right = bench.shown[0].data[:3], bench.shown[0].data[3:]
    assert all(np.array_equal(a.z, b.z) for a, b in zip(left[:2], right[:2], strict=True)) and np.array_equal(left[2].y, right[2].y)
    assert "overrides: {}" in bench.shown[1]


def test_each_slider_does_its_own():
    "Masks leave the signal, gain scales it, rotation permutes electrodes; the fields named are those that changed."
    signal, front = torch.randn(1, 2000, 2, 16), LogSpectrogram()
    off = dict(rotation=0, jitter=0, time_masks=0, time_width=25, freq_masks=0, freq_width=4, gain=0.0, noise_db=40)
    see = lambda draw=1, **changes: explore.augmented(signal, explore.settings_of(**(off | changes)), draw, front)
    plain, frames = see()
    assert explore.settings_of(**off) == AugmentSettings() and np.array_equal(plain, signal[0].numpy())
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
    from semgbook.recipes import preset
    bench = explore.augmentation_bench(session, 1.0, 4.0)
    bench.move(rotation=2, jitter=40, time_masks=3, gain=0.25)
    import html
    changes = json.loads(html.unescape(bench.shown[1]).removeprefix("<pre>overrides: ").removesuffix("</pre>"))
    made = preset("tds_embedded", changes).augment
    assert (made.rotation, made.alignment_jitter, made.n_time_masks, made.gain) == (2, 40, 3, (0.75, 1.25))


# --- architecture bench -------------------------------------------------------------------------

@pytest.mark.parametrize("name", [n for n in ENCODERS if "gpt2" not in n][::3])
def test_blocks_add_up(name):
    rows, facts = explore.block_rows(name, 16, 64, 16, 2000.0, 5.0)
    assert rows["parameters"].sum() == facts["parameters"] and rows["million MACs per second"].sum() == pytest.approx(facts["mmacs_per_s"], rel=0.02)
    last = rows.iloc[-1]
    assert last["outputs per second"] == facts["output_hz"]
    assert pd.isna(last["back (ms)"]) == (facts["field_ms"] is None)
    if facts["field_ms"]: assert last["back (ms)"] + last["ahead (ms)"] == pytest.approx(facts["field_ms"] - 32)


def test_facts_are_those_of_a_real_encoder():
    line = "norm mlp(features=32) stride(kernel=4,stride=2) gru:2(hidden=16,bidirectional=0)"
    _, facts = explore.block_rows(line, 8, 32, 10, 200.0, 4.0)
    real = build_encoder(line, 2, 8, 17)
    assert facts == encoder_facts(real, 80, 32, 10, 200.0) and facts["parameters"] == sum(p.numel() for p in real.parameters())


def test_a_wrong_line_is_pointed_at():
    bench = explore.architecture_bench(["tds", "gru_4"])
    bench.move(line="norm mlp(featurs=3)")
    assert "featurs" in bench.note.value and "^" in bench.note.value
    with pytest.raises(EncoderError): explore.block_rows("norm mlp(featurs=3)", 16, 64, 16, 2000.0, 5.0)
    bench.box.children[0].children[0].value = ENCODERS["gru_4"]  # the menu writes into the line
    assert bench.values["line"] == ENCODERS["gru_4"] and not bench.note.value and "no bound" in bench.shown[0]


# --- emissions ----------------------------------------------------------------------------------

def test_every_key_has_a_place_and_a_finger():
    assert {explore._BASE.get(c, c) for c in QWERTY.chars} <= set(explore.PLACES)
    assert len(set(explore.PLACES.values())) == len(explore.PLACES)
    assert {explore.finger_of(c) for c in QWERTY.chars} <= set(explore.ORDER) and explore.finger_of("f") == (0, "index") and explore.finger_of("P") == (1, "pinky")
    assert explore.PLACES["q"][0] < explore.PLACES["p"][0] and explore.PLACES["a"][1] > explore.PLACES["z"][1] and set("asdf") <= set(LAYOUT)


@settings(max_examples=40, deadline=None)
@given(st.text("abeE 1!", max_size=25), st.text("abeE 1!", max_size=25))
def test_confusions_count_every_edit(typed, read):
    table = explore.confusion([(typed, read)])
    assert table.n.sum() == len(align(typed, read))
    plain = lambda t: t.replace("E", "e").replace("!", "1")
    wrong = sum(e.kind != "same" and plain(e.reference) != plain(e.prediction) for e in align(typed, read))
    assert table[table.typed != table.read].n.sum() == wrong <= count_errors(typed, read).edits


def test_keyboard_tells_shares():
    table = explore.confusion([("eeee the", "eeed te")])
    fig = explore.keyboard_figure(table)
    by_key = dict(zip([h.split("</b>")[0][3:] for h in fig.data[1].hovertext], fig.data[1].marker.color, strict=True))
    assert by_key["e"] == 20 and by_key["h"] == 100 and by_key["t"] == 0
    about = explore.keyboard_figure(table, "e")
    read_as = dict(zip([h.split("</b>")[0][3:] for h in about.data[1].hovertext], about.data[1].marker.color, strict=True))
    assert read_as["e"] == 80 and read_as["d"] == 20 and read_as["k"] == 0
    fingers = np.array(fig.data[3].z)
    assert fingers.sum() == 2 and fingers[explore.ORDER.index((0, "middle")), explore.ORDER.index((0, "middle"))] == 1 and fingers[:, -1].sum() == 1


@pytest.fixture(scope="module")
def runs():
    "Two tiny runs on the embedded corpus, made where they are not yet."
    embedded_corpus()
    return explore.some_runs(project_root() / "no-such-folder", 2)


def test_tiny_runs_are_made_once(runs, tmp_path):
    assert [run_state(r.folder) for r in runs] == ["done", "done"] and runs[0].results["phases"]["test"]["cer"] < 90
    before = (runs[0].folder / "results.json").stat().st_mtime
    again = explore.some_runs(tmp_path / "none", 1)
    assert again[0].folder == runs[0].folder and (again[0].folder / "results.json").stat().st_mtime == before
    assert not list(runs[0].folder.parent.glob(".*.tmp"))
    assert explore.some_runs(runs[0].folder.parent, 1)[0].folder.parent == runs[0].folder.parent


def test_windows_are_read_as_the_run_read_them(runs):
    "Greedy texts of all windows give the rate that the run stored for its test windows."
    windows, charset = explore.read_run_windows(runs[0], most=10_000)
    counts = [count_errors(w.reference, w.greedy) for w in windows]
    stored = runs[0].results["phases"]["test_windowed"]
    assert sum(c.n_reference for c in counts) == stored["n_reference"]
    extra_in_silent = stored["n_missed"] + stored["n_extra"] + stored["n_wrong"] - sum(c.edits for c in counts)
    assert 0 <= extra_in_silent <= 0.01 * stored["n_reference"]  # windows without keys are not shown
    for w in windows[:5]:
        assert len(w.frame_times) == len(w.log_probs) and np.all(np.diff(w.frame_times) > 0) and len(w.press_times) == len(w.reference)
        assert torch.allclose(w.log_probs.exp().sum(1), torch.ones(len(w.log_probs)), atol=1e-3) and w.log_probs.shape[1] == charset.n_classes


def test_viewer_follows_window_and_weight(runs):
    viewer = explore.emission_viewer(runs[:1])
    heat, text, keys = viewer.shown
    viewer.move(window=3)
    assert viewer.shown[0].to_json() != heat.to_json() and viewer.shown[2] is keys
    viewer.move(lm_weight=6.0, bonus=-2.0)
    eager = viewer.shown[1]
    viewer.move(lm_weight=0.0, bonus=0.0)
    assert viewer.shown[1] != eager and "errors in" in text
    viewer.move(key="e", window=63)
    assert viewer.shown[2] is not keys and not viewer.note.value


# --- run comparer -------------------------------------------------------------------------------

def test_smoothing_keeps_means_and_length():
    history = pd.DataFrame({"epoch": range(6), "step": range(6), "train_loss": [6.0, 2, 4, 0, 5, 1], "val_cer": [9.0, 9, 9, 9, 9, 9], "seconds": [1.0] * 6})
    flat = explore.smoothed(history, 3)
    assert flat.train_loss.tolist() == [6, 4, 4, 2, 3, 2] and flat.val_cer.tolist() == [9] * 6 and flat.epoch.tolist() == list(range(6))
    assert explore.smoothed(history, 1).equals(history)


def test_paired_figure_shows_the_test():
    rng = np.random.default_rng(3)
    text = ["".join(rng.choice(list("abcd "), 900)) for _ in range(2)]
    spoil = lambda t, p: "".join("z" if rng.random() < p else c for c in t)
    a, b = ([Scored(f"s{i}", "u", t, spoil(t, p)) for i, t in enumerate(text)] for p in (0.1, 0.3))
    result = compare(a, b, ("A", "B"))
    fig = explore.paired_figure(result)
    assert [f.x[0] for f in fig.data] == pytest.approx([result.cer_a, result.cer_b, result.difference])
    assert fig.data[2].x[0] - fig.data[2].error_x.arrayminus[0] == pytest.approx(result.low) and result.established


def test_comparer_says_what_cannot_be_compared(runs):
    with pytest.raises(explore.ExploreError, match="needs two"): explore.run_comparer(runs[:1])
    comparer = explore.run_comparer(runs)
    sentence = comparer.shown[2]
    comparer.move(block=100)
    assert comparer.shown[2] != sentence and not comparer.note.value
    comparer.move(runs=())
    assert "no run is chosen" in comparer.note.value
    comparer.move(runs=(0,))
    comparer.move(b=0)
    assert "with itself" in comparer.note.value


def test_runs_on_other_recordings_are_not_paired():
    "Curves stay possible; the place of the test says which recording is missing."
    one, other = [Scored("s0", "u", "abcd" * 60, "abcd" * 60)], [Scored("s1", "u", "abcd" * 60, "abce" * 60)]
    figure, sentence = explore.paired((one, other), ("A", "B"), 50)
    assert not figure.data and "s0" in sentence and "same sessions" in sentence
    figure, sentence = explore.paired((one, [Scored("s0", "u", "abcd" * 60, "abce" * 60)]), ("A", "B"), 50)
    assert len(figure.data) == 3 and "25.00 %" in sentence
    record = lambda *sessions: SimpleNamespace(results={"sessions": [{"session": s, "n_reference": n} for s, n in sessions]})
    assert explore.first_pair([record(("a", 5)), record(("b", 5)), record(("a", 6)), record(("b", 5))]) == (1, 3)
    assert explore.first_pair([record(("a", 5)), record(("b", 5))]) == (0, 1)


def test_pages_define_nothing():
    "The pages only call what this module offers."
    for page in (Path(explore.__file__).parents[1] / "nbs" / "explore").glob("*.ipynb"):
        source = "\n".join("".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code")
        assert "def " not in source and "class " not in source and "clear_output" not in source
