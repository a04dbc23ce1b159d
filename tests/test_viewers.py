"Trained runs under sliders: windows as the model read them, confusions on the keyboard, and paired tests."
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook import viewers
from semgbook.charset import QWERTY
from semgbook.explore import ExploreError
from semgbook.metrics import align, count_errors
from semgbook.runs import run_state
from semgbook.statistics import Scored, compare
from semgbook.synthetic import LAYOUT, embedded_corpus, project_root


# --- emissions ----------------------------------------------------------------------------------

def test_every_key_has_a_place_and_a_finger():
    assert {viewers._BASE.get(c, c) for c in QWERTY.chars} <= set(viewers.PLACES)
    assert len(set(viewers.PLACES.values())) == len(viewers.PLACES)
    assert {viewers.finger_of(c) for c in QWERTY.chars} <= set(viewers.ORDER) and viewers.finger_of("f") == (0, "index") and viewers.finger_of("P") == (1, "pinky")
    assert viewers.PLACES["q"][0] < viewers.PLACES["p"][0] and viewers.PLACES["a"][1] > viewers.PLACES["z"][1] and set("asdf") <= set(LAYOUT)


@settings(max_examples=40, deadline=None)
@given(st.text("abeE 1!", max_size=25), st.text("abeE 1!", max_size=25))
def test_confusions_count_every_edit(typed, read):
    table = viewers.confusion([(typed, read)])
    assert table.n.sum() == len(align(typed, read))
    plain = lambda t: t.replace("E", "e").replace("!", "1")
    wrong = sum(e.kind != "same" and plain(e.reference) != plain(e.prediction) for e in align(typed, read))
    assert table[table.typed != table.read].n.sum() == wrong <= count_errors(typed, read).edits


def test_a_key_that_nobody_pressed_is_not_one_without_errors():
    shares, told = viewers.key_errors(viewers.confusion([("aab", "ab")]))
    share, words = (dict(zip(viewers.PLACES, x, strict=True)) for x in (shares, told))
    assert (share["a"], share["b"]) == (50.0, 0.0) and np.isnan(share["q"]) and "pressed 0 times" in words["q"]


def test_keyboard_tells_shares():
    table = viewers.confusion([("eeee the", "eeed te")])
    fig = viewers.keyboard_figure(table)
    by_key = dict(zip([h.split("</b>")[0][3:] for h in fig.data[1].hovertext], fig.data[1].marker.color, strict=True))
    assert by_key["e"] == 20 and by_key["h"] == 100 and by_key["t"] == 0
    about = viewers.keyboard_figure(table, "e")
    read_as = dict(zip([h.split("</b>")[0][3:] for h in about.data[1].hovertext], about.data[1].marker.color, strict=True))
    assert read_as["e"] == 80 and read_as["d"] == 20 and read_as["k"] == 0
    fingers = np.array(fig.data[3].z)
    assert fingers.sum() == 2 and fingers[viewers.ORDER.index((0, "middle")), viewers.ORDER.index((0, "middle"))] == 1 and fingers[:, -1].sum() == 1


@pytest.fixture(scope="module")
def runs():
    "Two tiny runs on the embedded corpus, made where they are not yet."
    embedded_corpus()
    return viewers.some_runs(project_root() / "no-such-folder", 2)


def test_tiny_runs_are_made_once(runs, tmp_path):
    assert [run_state(r.folder) for r in runs] == ["done", "done"] and runs[0].results["phases"]["test"]["cer"] < 90
    before = (runs[0].folder / "results.json").stat().st_mtime
    again = viewers.some_runs(tmp_path / "none", 1)
    assert again[0].folder == runs[0].folder and (again[0].folder / "results.json").stat().st_mtime == before
    assert not list(runs[0].folder.parent.glob(".*.tmp"))
    assert viewers.some_runs(runs[0].folder.parent, 1)[0].folder.parent == runs[0].folder.parent


def test_windows_are_read_as_the_run_read_them(runs):
    "Greedy texts of all windows give the rate that the run stored for its test windows."
    windows, charset = viewers.read_run_windows(runs[0], most=10_000)
    counts = [count_errors(w.reference, w.greedy) for w in windows]
    stored = runs[0].results["phases"]["test_windowed"]
    assert sum(c.n_reference for c in counts) == stored["n_reference"]
    extra_in_silent = stored["n_missed"] + stored["n_extra"] + stored["n_wrong"] - sum(c.edits for c in counts)
    assert 0 <= extra_in_silent <= 0.01 * stored["n_reference"]  # windows without keys are not shown
    for w in windows[:5]:
        assert len(w.frame_times) == len(w.log_probs) and np.all(np.diff(w.frame_times) > 0) and len(w.press_times) == len(w.reference)
        assert torch.allclose(w.log_probs.exp().sum(1), torch.ones(len(w.log_probs)), atol=1e-3) and w.log_probs.shape[1] == charset.n_classes


def test_viewer_follows_window_and_weight(runs):
    viewer = viewers.emission_viewer(runs[:1])
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
    flat = viewers.smoothed(history, 3)
    assert flat.train_loss.tolist() == [6, 4, 4, 2, 3, 2] and flat.val_cer.tolist() == [9] * 6 and flat.epoch.tolist() == list(range(6))
    assert viewers.smoothed(history, 1).equals(history)


def test_paired_figure_shows_the_test():
    rng = np.random.default_rng(3)
    text = ["".join(rng.choice(list("abcd "), 900)) for _ in range(2)]
    spoil = lambda t, p: "".join("z" if rng.random() < p else c for c in t)
    a, b = ([Scored(f"s{i}", "u", t, spoil(t, p)) for i, t in enumerate(text)] for p in (0.1, 0.3))
    result = compare(a, b, ("A", "B"))
    fig = viewers.paired_figure(result)
    assert [f.x[0] for f in fig.data] == pytest.approx([result.cer_a, result.cer_b, result.difference])
    assert fig.data[2].x[0] - fig.data[2].error_x.arrayminus[0] == pytest.approx(result.low) and result.established


def test_comparer_says_what_cannot_be_compared(runs):
    with pytest.raises(ExploreError, match="needs two"): viewers.run_comparer(runs[:1])
    comparer = viewers.run_comparer(runs)
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
    figure, sentence = viewers.paired((one, other), ("A", "B"), 50)
    assert not figure.data and "s0" in sentence and "same sessions" in sentence
    figure, sentence = viewers.paired((one, [Scored("s0", "u", "abcd" * 60, "abce" * 60)]), ("A", "B"), 50)
    assert len(figure.data) == 3 and "25.00 %" in sentence
    record = lambda *sessions: SimpleNamespace(results={"sessions": [{"session": s, "n_reference": n} for s, n in sessions]})
    assert viewers.first_pair([record(("a", 5)), record(("b", 5)), record(("a", 6)), record(("b", 5))]) == (1, 3)
    assert viewers.first_pair([record(("a", 5)), record(("b", 5))]) == (0, 1)
