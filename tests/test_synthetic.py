"The simulator: rhythm as in real logs, the same for the same seed, identical users without shift, files that read back."
import gzip
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from semgbook.charset import get_charset
from semgbook.repro import numpy_generator
from semgbook.session import open_session, read_signal
from semgbook.synthetic import (EMBEDDED, KEY_INDEX, LAYOUT, WORDS, CorpusSpec, SimulatorError, SimulatorSettings, Typing, TypingStyle, add_slips,
                                draw_text, draw_user, electrode_gains, embedded_corpus, finger_events, key_truth, keys_of_text, muscle_drive, project_root,
                                put_on_again, replay_log, simulate_one, simulate_session, spike_times, type_text, write_corpus, write_finger_csv,
                                write_once)

LOGS = ("2021-06-04-1622861066", "2021-07-22-1627004019")
SUFFIX = "-keystrokes-dca-study@1-0efbe614-9ae6-4131-9192-4398359b4f5f.json"
SMALL = CorpusSpec((("ada", 2, .1), ("ben", 1, .1)))


@pytest.fixture(scope="module")
def typed():
    return type_text(draw_text(400, numpy_generator(0, "test")), numpy_generator(1, "test"))


@pytest.fixture
def logs(shared):
    return [replay_log(json.loads(shared(f"data/emg2qwerty_sessions/{name}{SUFFIX}").read_text())["keystrokes"]) for name in LOGS]


def gaps(t): return np.diff(t.press_times)
def holds(t): return t.release_times - t.press_times
def rollover(t): return np.mean(t.release_times[:-1] > t.press_times[1:])
def backspaces(t): return np.mean(np.array(t.keys) == "Key.backspace")


@pytest.mark.parametrize("measure, ks", [(gaps, .10), (holds, .16)])
def test_rhythm_is_that_of_the_logs(typed, logs, measure, ks):
    real = np.concatenate([measure(log) for log in logs])
    quantiles = np.percentile(measure(typed), (5, 25, 50, 75, 95)) / np.percentile(real, (5, 25, 50, 75, 95))
    assert (np.abs(quantiles - 1) < .15).all(), quantiles
    assert ks_2samp(measure(typed), real).statistic < ks


@pytest.mark.parametrize("measure, slack", [(rollover, .04), (backspaces, .01)])
def test_shares_lie_where_the_logs_lie(typed, logs, measure, slack):
    real = [measure(log) for log in logs]
    assert min(real) - slack < measure(typed) < max(real) + slack


def test_a_real_log_is_replayed_unchanged(logs):
    for log in logs:
        labels = get_charset("qwerty").labels_of_keys(log.keys)
        assert len(labels) == len(log.keys) in (4432, 4569)
        assert (gaps(log) >= 0).all() and log.press_times[0] == 1
    short = logs[1].before(8)
    x = simulate_session(short, draw_user(0), numpy_generator(0, "replay"))
    assert x.shape[1:] == (2, 16) and np.isfinite(x).all() and len(x) == round((short.release_times.max() + 1) * 2000)


def test_speed_scales_the_gaps():
    text = draw_text(30, numpy_generator(0, "speed"))
    slow, fast = (type_text(text, numpy_generator(1, "speed"), TypingStyle(speed=s)) for s in (1.0, 2.0))
    assert slow.keys == fast.keys and np.allclose(gaps(slow), 2 * gaps(fast))


def test_presses_are_in_order_and_no_finger_holds_two_keys(typed):
    assert (gaps(typed) > 0).all() and (holds(typed) > 0).all()
    finger = np.array([5 * LAYOUT[k].hand + LAYOUT[k].finger for k in typed.keys])
    for f in range(10):
        i = np.flatnonzero(finger == f)
        assert (typed.release_times[i[:-1]] < typed.press_times[i[1:]]).all()


@pytest.mark.parametrize("seed", range(5))
def test_slips_are_corrected(seed):
    keys, screen = keys_of_text(draw_text(10, numpy_generator(seed, "slips"))), []
    for key in add_slips(keys, numpy_generator(seed, "x"), .3):
        screen.pop() if key == "Key.backspace" else screen.append(key)
    assert screen == keys


def test_layout_covers_the_character_set_and_separates_letters():
    assert set(LAYOUT) == set(get_charset("qwerty").keys)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert len({LAYOUT[k] for k in letters}) == 26 and set("".join(WORDS)) == set(letters)
    assert LAYOUT["f"].hand == 0 and LAYOUT["j"].hand == 1 and LAYOUT["6"].row == 2
    assert [LAYOUT[k].lateral for k in "fgjha;'"] == [0, 1, 0, 1, 0, 0, 1]


def test_what_cannot_be_typed_is_refused():
    with pytest.raises(SimulatorError, match="no finger for character 'é'"): keys_of_text("é")
    with pytest.raises(SimulatorError, match="no key of the keyboard"): replay_log([dict(key="Key.f1", start=0, end=1)])
    late = Typing(("a",), np.array([9.0]), np.array([9.1]))
    with pytest.raises(SimulatorError, match="outside"): simulate_session(late, draw_user(0), numpy_generator(0), duration_s=2)


def test_nothing_typed_is_a_recording_too():
    empty = type_text("", numpy_generator(0))
    x = simulate_session(empty, draw_user(0), numpy_generator(0), duration_s=1)
    assert x.shape == (2000, 2, 16) and x.std() > .5


def test_same_seed_same_session():
    a, b = simulate_one(SMALL, 0, 0), simulate_one(SMALL, 0, 0)
    assert a[0].keys == b[0].keys and np.array_equal(a[1], b[1])
    c = simulate_one(replace(SMALL, seed=1), 0, 0)
    assert not np.array_equal(a[1], c[1])
    assert not np.array_equal(a[1], simulate_one(SMALL, 0, 1)[1])


def test_without_shift_all_users_and_sessions_are_identical():
    a, b, other = draw_user(1, 0), draw_user(2, 0), draw_user(2)
    for name in ("moves", "angle", "depth", "size", "rotation", "contact", "noise"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert (a.speed, a.hold) == (b.speed, b.hold) == (1, 1)
    again = put_on_again(a, numpy_generator(0), 0)
    assert np.array_equal(again.rotation, a.rotation) and np.array_equal(again.contact, a.contact)
    assert np.abs(other.rotation).max() > 1
    typing = type_text("same", numpy_generator(0))
    assert np.array_equal(simulate_session(typing, a, numpy_generator(5)), simulate_session(typing, b, numpy_generator(5)))


def test_shift_is_proportional():
    half, whole, none = draw_user(3, .5), draw_user(3, 1.0), draw_user(3, 0)
    assert np.allclose(2 * (half.angle - none.angle), whole.angle - none.angle)
    assert np.allclose(2 * np.log(half.contact), np.log(whole.contact))


def test_spikes_keep_the_refractory_time_and_follow_the_drive():
    s, drive = SimulatorSettings(), np.repeat([0.0, .4, 1.2], 5000)
    unit, times = spike_times(drive, numpy_generator(0), s)
    for u in range(s.n_units):
        assert (np.diff(times[unit == u]) >= s.refractory_s - 1e-9).all()
    counts = np.histogram(times, (0, 10, 20, 30))[0]
    threshold = np.linspace(.06, .8, s.n_units)
    expected = [10 * np.where(a > threshold, np.minimum(8 + 60 * (a - threshold), s.peak_hz), 0).sum() for a in (0, .4, 1.2)]
    assert counts[0] == 0 and np.allclose(counts[1:], expected[1:], rtol=.05)


def test_turning_the_band_by_one_electrode_shifts_the_pattern():
    user = draw_user(4)
    user = replace(user, contact=np.ones_like(user.contact))
    turned = replace(user, rotation=user.rotation + 22.5)
    assert np.allclose(electrode_gains(turned), np.roll(electrode_gains(user), 1, axis=-1))


def test_bursts_stand_before_the_press_and_on_the_right_side():
    press = 1 + .5 * np.arange(30)
    drive = muscle_drive(Typing(("k",) * 30, press, press + .1), draw_user(0, 0), numpy_generator(0), SimulatorSettings(), 17)
    flexor = drive[1, 2, :8000].reshape(-1, 250).mean(0)  # middle flexor, folded at 0.5 s
    assert 30 <= (250 - flexor.argmax()) * 2 <= 80  # ms before the press
    assert np.allclose(drive[0], SimulatorSettings().posture)


@pytest.mark.parametrize("key, band, finger", [("a", 0, "pinky"), ("j", 1, "index"), ("Key.space", 1, "thumb"), ("Key.shift", 0, "pinky"), ("e", 0, "middle")])
def test_the_truth_is_where_the_signal_is(key, band, finger):
    user, press, calm = draw_user(0), 1 + .4 * np.arange(25), SimulatorSettings(artefacts_per_minute=0)
    x = simulate_session(Typing((key,) * 25, press, press + .1), user, numpy_generator(0), calm)
    rest = simulate_session(Typing((), np.zeros(0), np.zeros(0)), user, numpy_generator(1), calm, 11)
    added = np.sqrt(np.maximum(x.var(0) - rest.var(0), 0))
    truth = key_truth(key, user)
    assert truth["finger"] == finger and truth["band"] == ("left", "right")[band] and truth["muscles"][0][1] > .5
    distance = abs(int(added[band].argmax()) - truth["electrode"])
    assert min(distance, 16 - distance) <= 1
    assert np.corrcoef(added[band], truth["pattern"])[0, 1] > .9 and added[band].max() > 3 * added[1 - band].max()


def test_levels_lie_near_the_real_ones():
    x = simulate_one(replace(EMBEDDED, users=(("a", 1, .5),)), 0, 0)[1]
    frames = np.lib.stride_tricks.sliding_window_view(x, 64, axis=0)[::16]
    spectrum = np.log10(np.abs(np.fft.rfft(frames * np.hanning(65)[:64]))**2 / 24 + 1e-6)
    assert 3.5 < x.std() < 7 and .25 < spectrum.mean() < .75 and .8 < spectrum.var() < 1.4
    power = (10**spectrum).mean((0, 1, 2))
    assert power[2:15].sum() > .85 * power.sum()  # 60 to 450 Hz


def test_written_sessions_read_back(tmp_path):
    paths = write_corpus(tmp_path, SMALL)
    assert [p.stem for p in paths] == ["ada-session0", "ada-session1", "ben-session0"]
    session = open_session(paths[1], check_signal=True)
    typing, signal, user = simulate_one(SMALL, 0, 1)
    assert session.user == "ada" and session.rate_hz == 2000 and session.n_channels == 16 and session.keys == typing.keys
    assert np.array_equal(read_signal(session), signal)
    assert np.allclose(session.press_times - session.first_time, typing.press_times, atol=1e-6)
    assert np.allclose(json.loads(session.attributes["simulated"])["band_rotation_degrees"], user.rotation, atol=1e-3)


def test_embedded_corpus_is_reused_repaired_and_replaced(tmp_path):
    folder = embedded_corpus(tmp_path / "c", SMALL)
    first = folder / "ada-session0.hdf5"
    stamp = first.stat().st_mtime_ns
    assert embedded_corpus(folder, SMALL) == folder and first.stat().st_mtime_ns == stamp
    first.write_bytes(b"truncated")
    embedded_corpus(folder, SMALL)
    assert open_session(first, check_signal=True).user == "ada"
    embedded_corpus(folder, CorpusSpec((("eve", 1, .05),)))
    assert sorted(p.name for p in folder.iterdir()) == ["eve-session0.hdf5", "manifest.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".c.lock", "c"]  # no temporary folder is left


def _write_slowly(folder):  # a corpus that takes a while, as the embedded one does
    time.sleep(0.5)
    (folder / "a.txt").write_text("whole")
    (folder.parent / f"written by {os.getpid()}").touch()


def _write_and_read(folder):
    write_once(folder, "settings", _write_slowly)
    seen = set()
    for _ in range(100):
        seen.add((folder / "a.txt").read_text())
        time.sleep(0.01)
    return seen


def test_processes_that_start_together_write_a_corpus_once_and_never_miss_it(tmp_path):
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_write_and_read, [tmp_path / "c"] * 3)) == [{"whole"}] * 3
    assert len(list(tmp_path.glob("written by *"))) == 1


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(SimulatorError, match="did not write"): embedded_corpus(tmp_path, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_crash_leaves_the_old_corpus(tmp_path, monkeypatch):
    folder = embedded_corpus(tmp_path / "c", SMALL)
    monkeypatch.setattr("semgbook.synthetic.write_corpus", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): embedded_corpus(folder, replace(SMALL, seed=9))
    assert open_session(folder / "ada-session0.hdf5").user == "ada" and sorted(p.name for p in tmp_path.iterdir()) == [".c.lock", "c"]


def test_embedded_spec_is_small_enough():
    minutes = {name: n * m for name, n, m in EMBEDDED.users}
    assert minutes["user0"] >= 10 and len(minutes) == 3 and sum(minutes.values()) * 60 * 2000 * 136 < 350e6
    assert set(KEY_INDEX) == set(LAYOUT)


def test_project_root_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("")
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    assert project_root() == tmp_path


def test_finger_csv_has_the_layout(tmp_path):
    a = write_finger_csv(tmp_path / "a.csv.gz", .5, seed=1)
    b = write_finger_csv(tmp_path / "b.csv.gz", .5, seed=1)
    assert a.read_bytes() == b.read_bytes()
    head, *rows = gzip.decompress(a.read_bytes()).decode().splitlines()
    assert head.split(",") == ["timestamp", *(f"emg_{c}" for c in range(1, 9)), "thumb", "index", "middle", "ring", "pinky", "rest"]
    cells = [row.split(",") for row in rows]
    stamps = np.array([c[0] for c in cells], dtype="datetime64[us]")
    table = np.array([c[1:] for c in cells]).astype(int)
    assert len(rows) == 6000 and (np.diff(stamps) > np.timedelta64(0)).all() and all("." in c[0] for c in cells)
    assert (table[:, 8:].sum(1) == 1).all() and np.abs(table[:, :8]).max() <= 128 and 3 < table[:, :8].std() < 30
    held = table[:, 8:].argmax(1)
    assert table[held != 5, :8].std() > 1.5 * table[held == 5, :8].std()


def test_finger_events_match_the_real_list(shared):
    real = np.load(shared("data/kao_events/kao_subject1_train_events_real_seconds.npz"))
    length, rest = real["end_s"] - real["start_s"], np.array([str(n) for n in real["label_names"]])[real["label"]] == "rest"
    finger, border = finger_events(3272, numpy_generator(0, "events"))
    made = np.diff(border)
    for real_part, part in ((length[rest], made[finger == 5]), (length[~rest], made[finger < 5])):
        assert np.allclose(np.percentile(part, (5, 50, 95)), np.percentile(real_part, (5, 50, 95)), rtol=.12)
    assert abs(len(finger) / len(length) - 1) < .1
