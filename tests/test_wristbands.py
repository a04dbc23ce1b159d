"Other devices to sessions: counts of the real event list and of the stand-in, dirt, idempotence, electrodes, rates."
import gzip
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from semgbook.repro import fingerprint
from semgbook.session import open_session, read_signal, read_times
from semgbook.wristbands import (FINGER_NAMES, GESTURE_KEYS, GESTURES, KAO_COLUMNS, FingerRecording, ReadReport, WristbandError, convert_kao, convert_myo,
                                 finger_presses, find_lines, find_myo_sessions, find_runs, interpolate_electrodes, keep_in_order, pick_finger, read_finger_csv,
                                 read_myo, resample, tile_electrodes, training_offsets)

HEADER = ",".join(KAO_COLUMNS)


def letters(keys):
    return "".join(" " if k == "Key.space" else k for k in keys)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def row(i, finger=5, emg=(1, 2, 3, 4, 5, 6, 7, 8)):
    "Row i of a 200 Hz table, as a list of fields."
    micros = 670_000 + 5000 * i
    return [f"2025-02-19T05:{59:02d}:{39 + micros // 1_000_000:02d}.{micros % 1_000_000:06d}", *map(str, emg), *(str(int(j == finger)) for j in range(6))]


def table(n=400, **changes):
    "Rows of a clean table: rest with a press of the index finger in the middle; `changes` by line number in the file."
    rows = [row(i, 1 if n // 3 <= i < n // 2 else 5) for i in range(n)]
    for line, change in changes.get("lines", {}).items():
        rows[line - 2] = change(rows[line - 2])
    return rows


def write(path, rows, header=HEADER, end="\n"):
    path.write_text(header + end + "".join(",".join(r) + end for r in rows), newline="")
    return path


@pytest.fixture
def clean(tmp_path):
    return write(tmp_path / "clean.csv", table())


def recording(finger, times=None, names=FINGER_NAMES):
    finger = np.asarray(finger, np.int8)
    times = np.arange(len(finger)) / 200 if times is None else np.asarray(times, float)
    return FingerRecording(np.zeros((len(finger), 8), np.float32), times, finger, ReadReport("here", len(finger)), names)


# Real labels and the stand-in --------------------------------------------------------------------------------------------------

def test_the_real_event_list_becomes_its_7526_presses(shared):
    with np.load(shared("data/kao_events/kao_subject1_train_events_real_seconds.npz")) as events:
        start, end, label = events["start_s"], events["end_s"], events["label"]
    times = np.arange(0, end[-1] + .02, 1 / 200)                                     # an ideal 200 Hz clock, running into the thumb that follows
    finger = np.append(label, 0)[np.searchsorted(np.append(start, end[-1]), times, "right") - 1]
    keys, press, release = finger_presses(recording(finger, times))
    text = letters(keys)
    assert len(text) == 7526 and digest(text) == "39a94adb743869534dfdf7d61797f4cd87699d02fa5500fbc8a1b901b9360255"
    assert [text.count(c) for c in " jkl;r"] == [566, 992, 779, 785, 643, 3761]
    assert np.abs(press - start).max() <= .005 and np.abs(release - end).max() <= .005
    assert np.median((release - press)[np.array(list(text)) == "r"]) == pytest.approx(.436, abs=.006)
    assert len(finger_presses(recording(finger, times), rest=False)[0]) == 3765


@pytest.fixture(scope="module")
def standin(shared, tmp_path_factory):
    folder = shared("data/kao_standin")
    paths = [folder / "subject1.csv.gz", folder / "subject2.csv.gz"]
    return paths, [read_finger_csv(p) for p in paths], convert_kao(paths, tmp_path_factory.mktemp("kao"))


@pytest.mark.parametrize("subject", [0, 1])
def test_the_stand_in_gives_the_counts_of_its_reports(standin, subject):
    paths, recordings, sessions = standin
    want = json.loads(paths[subject].with_name(f"subject{subject + 1}.json").read_text())
    session, rec = open_session(sessions[subject], check_signal=True), recordings[subject]
    text = letters(session.keys)
    assert session.n_samples == want["whole_file"]["rows"] and len(text) == want["whole_file"]["closed_runs"]
    assert {c: text.count(c) for c in " jkl;r"} == want["whole_file"]["closed_runs_per_key"]
    assert digest(text) == want["whole_file"]["closed_runs_text_sha256"]
    assert (rec.report.n_dirty, rec.report.gaps) == (0, 0) and rec.report.unfinished > 0
    assert {name: int((rec.finger == i).sum()) for i, name in enumerate(FINGER_NAMES)} == want["whole_file"]["rows_per_class"]
    for part in ("train", "val"):
        if part in want:
            rows = slice(want[part]["first_row"], want[part]["first_row"] + want[part]["rows"])
            cut = replace(rec, signal=rec.signal[rows], times=rec.times[rows], finger=rec.finger[rows])
            assert digest(letters(finger_presses(cut)[0])) == want[part]["closed_runs_text_sha256"]


def test_sessions_of_the_stand_in_follow_the_common_format(standin):
    _, recordings, sessions = standin
    session = open_session(sessions[0])
    assert (session.user, session.rate_hz, session.n_channels, session.condition) == ("subject1", 200.0, 8, "on_keyboard")
    assert session.attributes["device"] == "kao" and session.contiguous
    times, signal = read_times(session), read_signal(session)
    assert times[0] == pytest.approx(1739944779.670096, abs=1e-6) and np.array_equal(times, recordings[0].times)
    assert not signal[:, 0].any() and np.abs(signal[:216071, 1].mean(0, dtype=np.float64)).max() < 1e-4
    second, offsets = open_session(sessions[1]), recordings[0].signal[:216071].mean(0, dtype=np.float64)
    assert np.allclose(read_signal(second)[:, 1], recordings[1].signal - offsets, atol=1e-4)   # the training subject's means, not its own


@pytest.mark.parametrize("participant, want", [("54321", 286925), ("99999", 287262), ("10000", 290644), ("40052", 288000), ("69069", 353000), ("35622", 288000),
                                               ("45744", 291990), ("64917", 288267)])
def test_myo_files_have_the_rows_and_the_dirt_of_their_table(shared, participant, want):
    folder = shared("data/myo/_readings_right_hand")
    sessions = {name: files for name, files in find_myo_sessions(folder).items() if name.startswith(participant)}
    recordings = [read_myo(file) for files in sessions.values() for file in files]
    onsets = sum(int((np.diff((r.finger > 0).astype(int)) == 1).sum()) + int(r.finger[0] > 0) for r in recordings)
    dirt = [p.partition("_readings_right_hand/")[2].split(":")[0] for r in recordings for p in r.problems if r.report.skipped]
    assert len(recordings) == 24 and sum(len(r.times) for r in recordings) == want and onsets == 126
    torn = {"2": (1032, 1033), "1": (1996, 1997), "4": (346, 347), "7": (1347, 1348)}
    where = [f"64917-{s}/{label}.txt.gz, line {n}" for s, label in ((1, "2"), (2, "1"), (2, "4"), (3, "7")) for n in torn[label]]
    assert sorted(dirt) == sorted(where if participant == "64917" else [])
    assert sum(r.report.skipped for r in recordings) == len(dirt)


def test_a_myo_participant_becomes_three_sessions(shared, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for source in sorted(shared("data/myo/_readings_right_hand").glob("69069-*")):
        (folder / source.name).symlink_to(source)
    reports = []
    sessions = [open_session(p, check_signal=True) for p in convert_myo(folder, tmp_path / "out", tell=reports.append)]
    assert [s.name for s in sessions] == ["69069-1", "69069-2", "69069-3"] and {s.user for s in sessions} == {"69069"}
    assert sum(k != "r" for s in sessions for k in s.keys) == 126                     # no gesture is lost, the last one of a file neither
    told = " ".join(reports[0].problems)
    assert "3.txt.gz: the name says label 3, the rows say 2" in told and "repeat the row before" in told
    assert sessions[0].keys.count("j") == 12 and sessions[1].keys.count("j") == 6       # label 2 stands in two files of the first session


# Reading a finger table --------------------------------------------------------------------------------------------------------

def test_a_clean_table_is_read_as_it_stands(clean):
    rec = read_finger_csv(clean)
    assert rec.signal.shape == (400, 8) and rec.signal.dtype == np.float32 and rec.times.dtype == np.float64 and rec.finger.dtype == np.int8
    assert (rec.signal == np.arange(1, 9)).all() and np.allclose(np.diff(rec.times), .005, atol=1e-6)
    assert rec.problems == () and rec.report.unfinished == 200 and "line" in str(replace(rec.report, problems=("x, line 2: y",)))


def test_gzip_crlf_bom_blank_lines_and_spaces_change_nothing(clean, tmp_path):
    want = read_finger_csv(clean)
    text = clean.read_text()
    forms = {"a.csv.gz": gzip.compress(text.encode()), "b.csv": text.replace("\n", "\r\n").encode(), "c.csv": b"\xef\xbb\xbf" + text.encode(),
             "d.csv": text.replace("\n", "\n\n").encode(), "e.csv": text.replace(",", ", ").encode(), "f.csv": text.rstrip("\n").encode(),
             "g.csv": text.replace("670000", "670000Z", 1).encode(), "misnamed.csv": gzip.compress(text.encode())}
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        got = read_finger_csv(tmp_path / name)
        assert np.array_equal(got.times, want.times) and np.array_equal(got.signal, want.signal) and got.report.n_dirty == 0, name


DIRT = {
    "text in a number": (lambda f: [*f[:3], "oops", *f[4:]], "column 4 (emg_3) holds 'oops', not an integer from -128 to 127"),
    "empty cell": (lambda f: [*f[:3], "", *f[4:]], "column 4 (emg_3) holds ''"),
    "nan": (lambda f: [*f[:3], "nan", *f[4:]], "column 4 (emg_3) holds 'nan'"),
    "infinite": (lambda f: [*f[:3], "inf", *f[4:]], "column 4 (emg_3) holds 'inf'"),
    "a fraction": (lambda f: [*f[:3], "1.5", *f[4:]], "column 4 (emg_3) holds '1.5'"),
    "too large": (lambda f: [*f[:3], "128", *f[4:]], "column 4 (emg_3) holds '128'"),
    "huge": (lambda f: [*f[:3], "9" * 400, *f[4:]], "column 4 (emg_3) holds '999"),
    "label of two": (lambda f: [*f[:9], "2", *f[10:]], "column 10 (thumb) holds '2', not an integer from 0 to 1"),
    "no time": (lambda f: ["noon", *f[1:]], "column 1 (timestamp) holds 'noon', not an ISO-8601 time"),
    "column missing": (lambda f: f[:-1], "14 fields instead of 15"),
    "column too many": (lambda f: [*f, "0"], "16 fields instead of 15"),
    "half a line": (lambda f: f[:4], "4 fields instead of 15"),
    "stray return": (lambda f: [*f[:3], "4\r5", *f[4:]], "a stray control character"),
    "nul": (lambda f: [*f[:3], "\0", *f[4:]], "a stray control character"),
    "quote": (lambda f: [*f[:3], '"', *f[4:]], "column 4 (emg_3) holds '\"'"),
    "late clock": (lambda f: ["2031-01-01T00:00:00", *f[1:]], "the time runs backwards"),
    "early clock": (lambda f: ["1999-01-01T00:00:00", *f[1:]], "the time runs backwards"),
}


@pytest.mark.parametrize("kind", DIRT)
def test_one_dirty_row_is_skipped_and_told(kind, tmp_path):
    change, message = DIRT[kind]
    path = write(tmp_path / "dirty.csv", table(lines={300: change}))
    rec, want = read_finger_csv(path), np.delete(np.arange(400), 298)
    assert len(rec.times) == 399 and rec.report.skipped == 1 and np.allclose(rec.times - rec.times[0], want / 200, atol=1e-6)
    assert rec.problems[0].startswith(f"{path}, line 300: ") and message in rec.problems[0]
    assert letters(finger_presses(rec)[0]) == "rj"
    with pytest.raises(WristbandError, match="line 300.*strict"):
        read_finger_csv(path, strict=True)


@pytest.mark.parametrize("line", [2, 401])
@pytest.mark.parametrize("kind", DIRT)
def test_dirt_in_the_first_and_the_last_row(kind, line, tmp_path):
    rec = read_finger_csv(write(tmp_path / "dirty.csv", table(lines={line: DIRT[kind][0]})))
    late_end = line == 401 and kind == "late clock" or line == 2 and kind == "early clock"   # a clock that jumps once looks like a pause
    assert (len(rec.times), rec.report.gaps) == ((400, 1) if late_end else (399, 0))


def test_too_much_dirt_is_an_error_with_line_column_and_remedy(tmp_path):
    path = write(tmp_path / "dirty.csv", table(lines=dict.fromkeys(range(100, 110), DIRT["text in a number"][0])))
    with pytest.raises(WristbandError, match=r"dirty.csv, line 100: column 4 \(emg_3\).*10 of 400 rows.*max_dirty=0.025"):
        read_finger_csv(path)
    rec = read_finger_csv(path, max_dirty=.025)
    assert rec.report.skipped == 10 and len(rec.problems) == 5
    with pytest.raises(WristbandError, match="line 3: column 2"):
        read_finger_csv(write(tmp_path / "short.csv", [row(0), [row(1)[0], "x", *row(1)[2:]], row(2)]))


def test_several_and_no_active_fingers_are_counted(tmp_path):
    several, none = (lambda f: [*f[:9], *"010001"]), (lambda f: [*f[:9], *"000000"])
    rec = read_finger_csv(write(tmp_path / "labels.csv", table(lines={150: several, 160: none, 300: none})))
    assert (rec.report.several_active, rec.report.none_active, rec.report.skipped) == (1, 2, 0)
    assert letters(finger_presses(rec)[0]) == "rj" and len(rec.times) == 400
    assert "line 150: 2 fingers are active" in rec.problems[0] and "line 160: no finger is active" in rec.problems[1]


def test_a_row_without_a_finger_keeps_the_one_before():
    assert pick_finger(np.zeros((3, 6))).tolist() == [5, 5, 5]
    assert pick_finger(np.eye(6)).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("content, message", [
    ("", "line 1: 1 columns, but 15"), ("a,b,c\n1,2,3\n", "line 1: 3 columns, but 15 are needed"), (HEADER, "no rows of data"), (HEADER + "\n\n\n", "no rows of data"),
    (",".join(row(0)) + "\n", "line 1: there is no header"), (HEADER.replace("thumb,index", "index,thumb") + "\n" + ",".join(row(0)), "bring them into the order"),
    (HEADER.replace(",emg_8", "") + "\n" + ",".join(row(0)[:8] + row(0)[9:]), "line 1: 14 columns"),
    (HEADER + "\n" + "x\n" * 50, "line 2: 1 fields instead of 15"),
])
def test_a_table_of_another_kind_is_refused_by_name(content, message, tmp_path):
    (tmp_path / "other.csv").write_text(content)
    with pytest.raises(WristbandError, match=f"other.csv.*{message}"):
        read_finger_csv(tmp_path / "other.csv")


def test_unreadable_files_are_refused_by_name(clean, tmp_path):
    squeezed = gzip.compress(clean.read_bytes())
    for name, data in {"cut.csv.gz": squeezed[:-40], "noise.csv": bytes(range(256)) * 40, "flipped.csv.gz": squeezed[:60] + b"\0\0\0\0" + squeezed[64:]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(WristbandError, match=name):
            read_finger_csv(tmp_path / name)
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(WristbandError, match="cannot be read"):
            read_finger_csv(missing)


def test_a_clock_of_another_rate_is_refused(tmp_path):
    rows = [r for i, r in enumerate(table(1600)) if i % 2]
    path = write(tmp_path / "slow.csv", rows)
    with pytest.raises(WristbandError, match=r"slow.csv: the timestamp column shows 100.* rows per second, not 200"):
        read_finger_csv(path)
    assert len(read_finger_csv(path, rate_hz=100).times) == 800


def test_column_names_of_the_electrodes_do_not_matter(clean):
    clean.write_text(clean.read_text().replace("emg_", "Channel "))
    assert read_finger_csv(clean).report.n_dirty == 0


def test_lines_end_at_a_line_feed_and_nowhere_else():
    for text in (b"", b"\n", b"a", b"a\n", b"a\r\n\r\nb", b"\r\n\r\n", b"a\rb\nc\r", b"\n\na\n"):
        starts, stops, numbers = find_lines(text)
        want = [(i, line.removesuffix(b"\r")) for i, line in enumerate(text.split(b"\n")) if line.removesuffix(b"\r")]
        assert [(int(n), text[a:b]) for a, b, n in zip(starts, stops, numbers)] == want, text


def test_order_is_kept_and_a_glitch_costs_one_row():
    rng = np.random.default_rng(0)
    for _ in range(200):
        times = np.sort(rng.uniform(0, 10, 60)).round(2)
        assert keep_in_order(times).all()
        glitch = times.copy()
        for i in rng.choice(np.arange(5, 55, 5), 4, replace=False):
            glitch[i] += rng.choice([-100, 100])
        kept = keep_in_order(glitch)
        assert (~kept).sum() == 4 and (np.diff(glitch[kept]) >= 0).all()
        wild = rng.normal(size=40)
        assert (np.diff(wild[keep_in_order(wild)]) >= 0).all()
    assert keep_in_order(np.zeros(0)).shape == (0,) and keep_in_order(np.ones(1)).all()


# Presses -----------------------------------------------------------------------------------------------------------------------

def test_runs_of_any_labels_agree_with_a_plain_loop():
    rng = np.random.default_rng(1)
    for n in (1, 2, 3, 50, 200):
        finger = rng.integers(0, 3, n)
        times = np.cumsum(rng.choice([.005, .005, .005, 2.0], n))
        starts, ends = find_runs(finger, times)
        want = [0] + [i for i in range(1, n) if finger[i] != finger[i - 1] or times[i] - times[i - 1] > .5]
        assert starts.tolist() == want and len(ends) == len(want)
        assert (ends >= times[starts]).all() and (ends[:-1] <= times[starts[1:]]).all() and ends[-1] == times[-1]


def test_a_jump_in_time_ends_a_press_when_it_was_last_seen():
    times = np.r_[np.arange(100) / 200, 5 + np.arange(100) / 200]
    keys, press, release = finger_presses(recording([1] * 150 + [5] * 50, times))
    assert letters(keys) == "jj" and press.tolist() == [0, 5] and release.tolist() == [times[99], times[150]]
    assert letters(finger_presses(recording([1] * 150 + [5] * 50, times), max_gap_s=10)[0]) == "j"


def test_the_open_run_is_dropped_unless_asked_for():
    rec = recording([5, 5, 1, 1, 4])
    assert letters(finger_presses(rec)[0]) == "rj" and letters(finger_presses(rec, keep_last=True)[0]) == "rj;"
    assert [len(x) for x in finger_presses(recording([2, 2, 2]))] == [0, 0, 0] and letters(finger_presses(rec, rest=False)[0]) == "j"
    assert letters(finger_presses(rec, keys={"index": "x", "rest": None}, keep_last=True)[0]) == "x"


# Conversion --------------------------------------------------------------------------------------------------------------------

def test_a_converted_session_is_the_same_wherever_its_table_lies(clean, tmp_path):
    "No folder of this machine goes into the file, neither with the report nor with its complaints, so a run keeps its name elsewhere."
    made = []
    for place in ("here", "there"):
        table = tmp_path / place / clean.name
        table.parent.mkdir()
        table.write_bytes(clean.read_bytes() + b"half a row\n")
        made += convert_kao([table], tmp_path / place / "sessions", users=["ada"], tell=lambda report: None)
    reports = [json.loads(open_session(path).attributes["read_report"]) for path in made]
    assert reports[0]["skipped"] == 1 and reports[0]["problems"] and clean.name in reports[0]["problems"][0]
    assert reports[0] == reports[1] and str(tmp_path) not in json.dumps(reports)
    assert fingerprint(made[0]) == fingerprint(made[1])


def test_converting_twice_writes_once_and_never_over_something_else(clean, tmp_path):
    out, reports = tmp_path / "out", []
    made = convert_kao([clean], out, users=["ada"], tell=reports.append)
    stamp = made[0].stat().st_mtime_ns
    assert convert_kao([clean], out, users=["ada"], tell=reports.append) == made and made[0].stat().st_mtime_ns == stamp and len(reports) == 1
    with pytest.raises(WristbandError, match="clean.hdf5 exists.*overwrite=True"):
        convert_kao([clean], out, rest=False, users=["ada"])
    assert made[0].stat().st_mtime_ns == stamp
    convert_kao([clean], out, rest=False, users=["ada"], overwrite=True)
    assert open_session(made[0]).keys == ("j",) and open_session(made[0]).user == "ada"
    made[0].write_text("somebody's notes")
    with pytest.raises(WristbandError, match="exists"):
        convert_kao([clean], out, users=["ada"])
    assert made[0].read_text() == "somebody's notes" and list(out.iterdir()) == made


def test_a_changed_source_is_noticed(clean, tmp_path):
    convert_kao(clean, tmp_path / "out")
    write(clean, table(500))
    with pytest.raises(WristbandError, match="other input"):
        convert_kao(clean, tmp_path / "out")
    assert open_session(convert_kao(clean, tmp_path / "out", overwrite=True)[0]).n_samples == 500


def test_offsets_of_the_first_file_serve_all_whichever_is_converted(clean, tmp_path):
    other = write(tmp_path / "other.csv", [row(i, emg=[50] * 8) for i in range(300)] + [row(300, 1)])
    made = convert_kao([clean, other], tmp_path / "a")
    made[1].unlink()
    again = convert_kao([clean, other], tmp_path / "a")                               # the first is there, the second made anew
    assert read_signal(open_session(again[1]))[0, 1].tolist() == (50 - np.arange(1, 9)).tolist()
    assert json.loads(open_session(again[1]).attributes["offsets"]) == list(range(1, 9))


def test_the_last_tenth_does_not_enter_the_offsets():
    signal = np.r_[np.zeros((90, 8)), np.full((10, 8), 100.0)]
    assert (training_offsets(signal) == 0).all() and training_offsets(signal, 1.0)[0] == 10 and training_offsets(signal[:1]).shape == (8,)


def test_names_and_users_are_checked(clean, tmp_path):
    (tmp_path / "sub").mkdir()
    twin = write(tmp_path / "sub" / "clean.csv", table())
    for arguments, message in (([[clean, twin], tmp_path], "session clean"), ([[clean], tmp_path, True, ["a", "b"]], "2 users for 1"), ([[], tmp_path], "no files")):
        with pytest.raises(WristbandError, match=message):
            convert_kao(*arguments)


def test_a_bad_file_leaves_no_session_and_dirt_warns(clean, tmp_path):
    bad = write(tmp_path / "bad.csv", table(n=3, lines={2: DIRT["half a line"][0]}))
    with pytest.raises(WristbandError, match="bad.csv, line 2"):
        convert_kao([clean, bad], tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["clean.hdf5"]
    spotted = write(tmp_path / "spotted.csv", table(lines={300: DIRT["half a line"][0]}))
    with pytest.warns(UserWarning, match="spotted.csv, line 300"):
        made = convert_kao([spotted], tmp_path / "out")
    assert json.loads(open_session(made[0]).attributes["read_report"])["skipped"] == 1


def test_myo_lines_out_of_range_and_foreign_folders(tmp_path):
    folder = tmp_path / "eva-1"
    folder.mkdir()
    (folder / "1.txt").write_text("\n".join(["1, 2,3,4,5,6,7,-128,0"] * 150 + ["1,2,3,4,5,6,7,129,1"] + ["1,2,3,4,5,6,7,8,1"] * 149))
    rec = read_myo(folder / "1.txt")
    assert rec.report.skipped == 1 and "line 151: column 8 (emg_8) holds '129'" in rec.problems[0] and rec.times[150] == 151 / 200
    assert rec.names == GESTURES and set(GESTURE_KEYS) == set(GESTURES)
    (folder / "1.txt").write_text("1,2,3,4,5,6,7,8,9\n" * 5)
    with pytest.raises(WristbandError, match=r"1.txt, line 1: column 9 \(label\) holds '9'"):
        convert_myo(folder, tmp_path / "out")
    for wrong in (tmp_path / "nothing", tmp_path / "out"):
        with pytest.raises(WristbandError, match="no files like 3.txt"):
            convert_myo(wrong, tmp_path / "out")
    with pytest.raises(WristbandError, match="keys names fists"):
        convert_myo(folder, tmp_path / "out", keys={"fists": "k"})


# Electrodes and rates ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("axis", [-1, 1, 0])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_electrodes_on_any_axis_of_arrays_and_tensors(axis, kind):
    x = np.moveaxis(np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32), -1, axis)
    roll = lambda y, k: np.roll(np.asarray(y), k, axis)  # noqa: E731
    tiled, between = tile_electrodes(kind(x), 16, axis), interpolate_electrodes(kind(x), 16, axis)
    assert type(between) is type(kind(x)) and between.dtype == kind(x).dtype and between.shape[axis] == 16
    tiled, between_array = np.asarray(tiled), np.asarray(between)
    assert np.array_equal(np.take(tiled, np.arange(8), axis), x) and np.array_equal(np.take(tiled, np.arange(8, 16), axis), x)
    assert np.array_equal(roll(between, 2), interpolate_electrodes(kind(roll(x, 1)), 16, axis))
    assert np.allclose(np.take(between_array, [15], axis), (np.take(x, [7], axis) + np.take(x, [0], axis)) / 2)
    assert np.array_equal(np.asarray(interpolate_electrodes(kind(x), 8, axis)), x)


def test_interpolation_keeps_constants_and_integers_become_floats():
    assert np.allclose(interpolate_electrodes(np.full((2, 8), 3.0), 12), 3) and interpolate_electrodes(np.arange(8), 16)[1] == .5


def test_resampling_keeps_what_fits_and_removes_what_would_fold():
    clock = np.arange(8000) / 2000
    low, high = np.sin(2 * np.pi * 30 * clock), np.sin(2 * np.pi * 140 * clock)
    signal = np.stack([low, high], 1)[:, None].astype(np.float32)                      # (T, 1, 2)
    out = resample(signal, 2000, 200)
    assert out.shape == (800, 1, 2) and out.dtype == np.float32
    inner = out[50:-50, 0]
    assert np.abs(inner[:, 0] - low[::10][50:-50]).max() < .01 and np.abs(inner[:, 1]).max() < .01 < np.abs(signal[::10, 0, 1]).max()
    assert np.allclose(resample(np.full((100, 2), 5.0), 200, 2000), 5, atol=.01) and np.array_equal(resample(signal, 200, 200), signal)
    assert resample(signal[:1001], 2000, 200).shape[0] == 101
    with pytest.raises(WristbandError):
        resample(signal, 2000, 0)
