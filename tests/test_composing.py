"Semi-real recordings: every sample traced, none on both sides of the cut, drift and stutter noticed, nobody who is tested."
import json

import numpy as np
import pytest

from semgbook.composing import (GESTURE_OF_FINGER, STANDIN_PERSONS, ComposeError, LeastUsed, SteadyRun, agreeing_ranges, compose_corpus, compose_recording, event_rows,
                                person_runs, steady_ranges, steady_runs, true_rows)
from semgbook.repro import numpy_generator
from semgbook.session import open_session, read_signal
from semgbook.splits import split_by_fraction
from semgbook.wristbands import FINGER_NAMES, GESTURES, RATE_HZ, FingerRecording, ReadReport, WristbandError, find_myo_sessions, finger_presses, read_myo

LABEL_OF_FINGER = [GESTURES.index(GESTURE_OF_FINGER[name]) for name in FINGER_NAMES]


def gesture_file(path, label, rng, cycles=3, period=1000, cross=False):
    "Rows in which a gesture of its own pattern follows the label by half a second; `period` other than 1000 drifts away from it."
    n = 2000 * cycles
    active = (np.arange(n) - 100).clip(0) // period % 2 * label
    level = 3 + np.where(active[:, None] > 0, 25 * np.exp(-((np.arange(8) - label) % 8) / 2), 0)
    emg = np.rint(rng.normal(-1, level)).clip(-128, 127).astype(int)
    shown = np.arange(n) // 1000 % 2 * (label + 1 if cross else label)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in np.column_stack([emg, shown]).tolist()))
    return active


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    "Two people, eva with two sessions and one file less in the second."
    folder, rng = tmp_path_factory.mktemp("myo"), np.random.default_rng(0)
    for session in ("eva-1", "eva-2", "ola-1"):
        for label in sorted({*LABEL_OF_FINGER, 5}):
            if (session, label) != ("eva-2", 5): gesture_file(folder / session / f"{label}.txt", label, rng)
    return folder


def runs_of(readings, person, **options):
    return person_runs({name: files for name, files in find_myo_sessions(readings).items() if name.startswith(person)}, **options)


def traced(readings, pieces):
    "The samples that the pieces name, read from the files again."
    files = {}
    for _, n, source, line in pieces:
        if source not in files: files[source] = np.array([list(map(int, row.split(","))) for row in (readings / source).read_text().splitlines()])
        yield files[source][line - 1:line - 1 + n]


def lines_of(pieces):
    return {(source, i) for _, n, source, line in pieces for i in range(line, line + n)}


# Runs --------------------------------------------------------------------------------------------------------------------------

def test_only_the_middle_of_a_run_is_used():
    label = np.repeat([0, 7, 0, 7, 0], [1000, 1000, 1000, 120, 100])
    assert steady_ranges(label, np.arange(3220) / RATE_HZ) == [(100, 950), (1150, 1990), (2250, 2950)]   # the last two runs are too short
    assert steady_ranges(np.zeros(2600, int), np.arange(2600) / RATE_HZ) == [(100, 1100), (1100, 2100), (2100, 2550)]
    torn = np.arange(1000) / RATE_HZ + (np.arange(1000) >= 500)
    assert all(b <= 500 or a >= 500 for a, b in steady_ranges(np.full(1000, 7), torn))


def test_a_piece_never_runs_across_a_missing_line(tmp_path):
    gesture_file(tmp_path / "7.txt", 7, np.random.default_rng(1))
    rows = (tmp_path / "7.txt").read_text().splitlines()
    rows[1500] = "1,2,3"
    (tmp_path / "7.txt").write_text("\n".join(rows))
    runs, _ = steady_runs(read_myo(tmp_path / "7.txt"), "7.txt")
    assert all((np.diff(run.lines) == 1).all() for run in runs) and not any(1501 in run.lines for run in runs)
    assert any(run.lines[-1] < 1501 and run.lines[0] > 1100 for run in runs) and any(1501 < run.lines[0] < 1700 for run in runs)


def test_stutter_is_taken_out_and_chance_is_not():
    signal = np.random.default_rng(0).integers(-20, 20, (1000, 8)).astype(float)
    stutter = np.insert(signal, np.arange(4, 1000, 4), signal[3:-1:4], axis=0)
    assert np.array_equal(stutter[true_rows(stutter)], signal)
    once = np.insert(signal, 7, signal[6], axis=0)
    assert true_rows(once).all() and true_rows(signal[:1]).all()


def test_labels_that_drift_are_left_out_and_good_ones_are_not(tmp_path):
    for period, good in ((1000, True), (1150, False)):
        active = gesture_file(tmp_path / "7.txt", 7, np.random.default_rng(2), cycles=4, period=period)
        recording = read_myo(tmp_path / "7.txt")
        ranges = steady_ranges(recording.finger, recording.times)
        kept = agreeing_ranges(ranges, recording.finger > 0, recording.signal)
        right = [np.mean(np.concatenate([(active[a:b] > 0) == (recording.finger[a:b] > 0) for a, b in some])) for some in (ranges, kept)]
        assert (kept == ranges) if good else (right[0] < .6 and right[1] > .95 and len(kept) < len(ranges))
        assert all(any(a <= c and d <= b for a, b in ranges) for c, d in kept)
    quiet = np.random.default_rng(3).normal(0, 3, recording.signal.shape)
    loud = (recording.finger > 0) == (np.arange(len(quiet)) >= 2000)             # the first gesture below rest, the others above
    assert agreeing_ranges(ranges, recording.finger > 0, np.where(loud[:, None], quiet, quiet / 3)) == ranges     # such a file says nothing


def test_the_last_run_of_each_label_of_each_file_is_reserved(readings):
    runs, left_out = runs_of(readings, "eva")
    for source in {run.source for run in runs}:
        for finger in range(6):
            marks = [run.reserved for run in runs if run.source == source and run.finger == finger]
            assert marks == [False] * (len(marks) - 1) + [True] * bool(marks)
    assert left_out == {"rows": 0, "files": []} and not any(run.reserved for run in runs_of(readings, "eva", reserve=False)[0])
    assert {run.finger for run in runs if run.source.endswith("/5.txt")} == {5}    # pronation is no finger, its rests are rest


def test_a_file_whose_rows_disagree_with_its_name_is_left_out(tmp_path):
    gesture_file(tmp_path / "eva-1" / "2.txt", 2, np.random.default_rng(0))
    gesture_file(tmp_path / "eva-1" / "3.txt", 3, np.random.default_rng(0), cross=True)
    runs, left_out = runs_of(tmp_path, "eva")
    assert left_out["files"] == ["eva-1/3.txt"] and {run.source for run in runs} == {"eva-1/2.txt"}


# Least used first --------------------------------------------------------------------------------------------------------------

def plain_runs(*sizes):
    return [SteadyRun(0, "x", np.arange(1, n + 1), np.zeros((n, 8), np.float32)) for n in sizes]


@pytest.mark.parametrize("seed", range(5))
def test_the_piece_taken_is_always_one_of_the_least_used(seed):
    rng = np.random.default_rng(seed)
    pool = LeastUsed(plain_runs(90, 200, 55), rng)
    for n in rng.integers(1, 60, 80).tolist():
        uses, before = [], pool.used.copy()
        for first, size in zip(pool.first, (90, 200, 55)): uses += [before[first + i:first + i + n].sum() for i in range(size - n + 1)]
        (k, offset, rows), = pool.take(n)
        at = pool.first[k] + offset
        assert rows == n and offset + n <= (90, 200, 55)[k] and before[at:at + n].sum() == min(uses)
        assert pool.used.sum() == before.sum() + n


def test_shelves_fill_up_before_anything_is_used_twice():
    pool = LeastUsed(plain_runs(100, 40, 60), np.random.default_rng(0))
    for _ in range(10): pool.take(20)
    assert (pool.used == 1).all() and pool.reuse == 1.0
    assert sum(n for _, _, n in pool.take(333)) == 333 and pool.used.sum() == 533


# Recordings --------------------------------------------------------------------------------------------------------------------

def test_every_sample_is_one_of_its_finger_unaltered(readings):
    composed = compose_recording(runs_of(readings, "eva")[0], 1.5, numpy_generator(0, "x"), max_reuse=9)
    at = 0
    for (first, n, source, _), rows in zip(composed.pieces, traced(readings, composed.pieces)):
        finger = composed.recording.finger[first:first + n]
        assert first == at and (finger == finger[0]).all() and (rows[:, 8] == LABEL_OF_FINGER[finger[0]]).all(), source
        assert np.array_equal(rows[:, :8], composed.recording.signal[first:first + n])
        at += n
    assert at == len(composed.recording.finger) == 18000
    assert np.array_equal(composed.recording.finger, event_rows(90, numpy_generator(0, "x")))


@pytest.mark.parametrize("val_fraction", [.1, .3])
def test_no_sample_lies_on_both_sides_of_the_cut(readings, val_fraction):
    composed = compose_recording(runs_of(readings, "eva")[0], 2, numpy_generator(1, "x"), val_fraction, max_reuse=9)
    sides = [[p for p in composed.pieces if (p[0] >= composed.first_reserved) == side] for side in (False, True)]
    assert all(p[0] + p[1] <= composed.first_reserved for p in sides[0]) and not lines_of(sides[0]) & lines_of(sides[1])
    assert composed.first_reserved == 24000 - round(24000 * val_fraction) and sides[1]
    for part, side in (("training", 0), ("validation", 1)):
        for name, finger in zip(FINGER_NAMES, range(6)):
            own = [p for p in sides[side] if composed.recording.finger[p[0]] == finger]
            assert composed.reuse[part][name] == (pytest.approx(sum(p[1] for p in own) / len(lines_of(own)), abs=6e-4) if own else 0)


def test_without_reserved_runs_there_is_one_part(readings):
    composed = compose_recording(runs_of(readings, "eva", reserve=False)[0], 1, numpy_generator(0), val_fraction=0, max_reuse=9)
    assert composed.first_reserved == 12000 and list(composed.reuse) == ["training"]


def test_too_much_and_too_little_are_refused_with_what_is_possible(readings):
    runs, _ = runs_of(readings, "eva")
    with pytest.raises(ComposeError, match=r"\w+: \d+ s are needed for the \w+ part .* ask for (.*) minutes") as caught:
        compose_recording(runs, 60, numpy_generator(0))
    possible = float(str(caught.value).split("ask for ")[1].split(" minutes")[0])
    assert 0 < possible < 20
    compose_recording(runs, .8 * possible, numpy_generator(0))
    with pytest.raises(ComposeError, match="middle: no steady run of fist for the training part"):
        compose_recording([run for run in runs if run.finger != 2], 1, numpy_generator(0))
    with pytest.raises(ComposeError, match="ring: no steady run of flexion for the validation part"):
        compose_recording([run for run in runs if run.finger != 3 or not run.reserved], 1, numpy_generator(0), max_reuse=9)
    for minutes, fraction in ((0, .1), (1, 1.0), (1, -.1)):
        with pytest.raises(ComposeError, match="give a length above 0"): compose_recording(runs, minutes, numpy_generator(0), fraction)


# Corpora -----------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def corpus(readings, tmp_path_factory):
    return compose_corpus(readings, tmp_path_factory.mktemp("corpus"), 1, max_reuse=9)


def test_sessions_say_what_they_are(corpus, readings):
    assert [p.name for p in corpus] == ["eva.hdf5", "ola.hdf5"]
    for path in corpus:
        session = open_session(path, check_signal=True)
        story = json.loads(session.attributes["composed"])
        signal, first = read_signal(session), story["first_reserved_row"]
        assert (session.user, session.rate_hz, session.n_channels, session.quality_tags) == (path.stem, 200.0, 8, ("semi-real",))
        assert "NOT finger data" in story["what"] and not signal[:, 0].any() and np.abs(signal[:first, 1].mean(0, dtype=float)).max() < 1e-4
        rows = np.concatenate(list(traced(readings, story["pieces"])))
        assert np.allclose(signal[:, 1] + json.loads(session.attributes["offsets"]), rows[:, :8], atol=1e-4)
        finger = np.searchsorted(LABEL_OF_FINGER, rows[:, 8], sorter=np.argsort(LABEL_OF_FINGER))
        finger = np.argsort(LABEL_OF_FINGER)[finger].astype(np.int8)
        want = finger_presses(FingerRecording(rows, np.arange(12000) / RATE_HZ, finger, ReadReport("", 12000)))
        assert list(session.keys) == want[0] and np.allclose(session.press_times - 1.7e9, want[1]) and np.allclose(session.release_times - 1.7e9, want[2])
        assert split_by_fraction([session], test_users=()).val[0].start == first
    card = (corpus[0].parent / "CARD.md").read_text()
    assert "NOT finger data" in card and "| eva | 1.00 |" in card and "| ola | 1.00 |" in card


def test_the_same_again_and_each_person_alone(corpus, readings, tmp_path):
    stamps = [p.stat().st_mtime_ns for p in corpus]
    assert compose_corpus(readings, corpus[0].parent, 1, max_reuse=9) == corpus and [p.stat().st_mtime_ns for p in corpus] == stamps
    alone, = compose_corpus(readings, tmp_path / "alone", 1, ["ola"], max_reuse=9)
    assert alone.read_bytes() == corpus[1].read_bytes()
    other, = compose_corpus(readings, tmp_path / "other", 1, ["ola"], seed=1, max_reuse=9)
    assert open_session(other).keys != open_session(alone).keys
    with pytest.raises(WristbandError, match="ola.hdf5 exists.*overwrite=True"):
        compose_corpus(readings, tmp_path / "alone", 1, ["ola"], seed=1, max_reuse=9)
    assert compose_corpus(readings, tmp_path / "alone", 1, ["ola"], seed=1, max_reuse=9, overwrite=True)[0].read_bytes() == other.read_bytes()


def test_persons_who_are_tested_are_never_composed(readings, tmp_path):
    folder = tmp_path / "myo"
    folder.mkdir()
    for session in ("eva-1", "eva-2", *(f"{p}-1" for p in STANDIN_PERSONS)):
        (folder / session).symlink_to(readings / (session if session.startswith("eva") else "ola-1"))
    assert [p.stem for p in compose_corpus(folder, tmp_path / "out", 1, max_reuse=9)] == ["eva"]
    for person in STANDIN_PERSONS:
        with pytest.raises(ComposeError, match=f"{person}: a person of the finger stand-in"): compose_corpus(folder, tmp_path / "out", 1, ["eva", person])
    with pytest.raises(ComposeError, match="no sessions of ida; there are 54321, 99999, eva"): compose_corpus(folder, tmp_path / "out", 1, ["ida"])
    with pytest.raises(ComposeError, match="person eva: .* minutes"): compose_corpus(folder, tmp_path / "long", 90)
    assert not (tmp_path / "long").exists()
    with pytest.raises(ComposeError, match="nobody is left"): compose_corpus(folder, tmp_path / "none", 1, [])


# Real recordings ---------------------------------------------------------------------------------------------------------------

def test_real_stutter_and_a_real_wrong_name(shared):
    folder = shared("data/myo/_readings_right_hand")
    recording = read_myo(folder / "69069-2" / "2.txt.gz")
    kept = true_rows(recording.signal)
    assert .19 < 1 - kept.mean() < .21
    label = recording.finger[kept]
    lengths = np.diff(np.flatnonzero(np.diff(label)))
    assert np.abs(lengths - 1000).max() < 20                                     # five seconds at 200 Hz again; 1252 lines before
    assert true_rows(read_myo(folder / "10000-1" / "2.txt.gz").signal).all()
    _, left_out = person_runs({"69069-1": find_myo_sessions(folder)["69069-1"]})
    assert left_out["files"] == ["69069-1/3.txt"]


def test_a_real_person_whose_labels_drift_loses_the_wrong_rests(shared):
    folder = shared("data/myo/_readings_right_hand")
    rest = {}
    for check in (False, True):
        runs, left_out = person_runs({"35622-1": find_myo_sessions(folder)["35622-1"]}, check_labels=check)
        rest[check] = np.sqrt(np.mean([np.square(run.signal).mean() for run in runs if run.finger == 5 and not run.source.endswith("/0.txt")]))
    assert left_out["rows"] > 5000 and rest[True] < .7 * rest[False]
    _, clean = person_runs({"40052-1": find_myo_sessions(folder)["40052-1"]})
    assert clean["rows"] < 400


def test_a_real_person_becomes_eight_minutes_without_much_re_use(shared, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    for source in shared("data/myo/_readings_right_hand").glob("10000-*"): (folder / source.name).symlink_to(source)
    session = open_session(compose_corpus(folder, tmp_path / "out", 8)[0], check_signal=True)
    story = json.loads(session.attributes["composed"])
    assert session.n_samples == 96000 and 1000 < len(session.keys) < 1250 and max(story["reuse"]["training"].values()) < 1.05
    sides = [[p for p in story["pieces"] if (p[0] >= story["first_reserved_row"]) == side] for side in (False, True)]
    assert not lines_of(sides[0]) & lines_of(sides[1]) and len({p[2].split("/")[0] for p in sides[0]}) == 3
