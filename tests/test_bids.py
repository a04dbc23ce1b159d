"Sessions through MNE and EMG-BIDS: units, labels at their very samples, tables without quoting, folders whole or not at all."
import json
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from toys import toy_corpus

from semgbook.bids import (BidsError, channel_names, events_of_table, from_raw, read_bids, read_tsv, sample_positions, to_raw, write_bdf,
                           write_bids)
from semgbook.session import SessionError, open_corpus, open_session, read_signal, read_times, write_session

REASON = "the extra is not installed: pip install 'semgbook[bids]'"
KEYS = ('"', "a", "Key.tab", "Key.backspace", " ", "\t", "\\", "n", "é", "Key.enter", ",", "'", "#", "\n", "⏎")


@pytest.fixture(scope="module")
def mne():
    "MNE, of a version that carries facts along with annotations."
    pytest.importorskip("mne", minversion="1.11", reason=REASON)
    return pytest.importorskip("mne", reason=REASON)


@pytest.fixture(scope="module")
def bids(mne):
    "mne-bids, of a version that knows EMG."
    return pytest.importorskip("mne_bids", minversion="0.19", reason=REASON)


def make(path, *, n=3001, rate=500.0, channels=16, keys=KEYS, clock=None, name=None, prompts=(), right=True, start=1.6e9 + 0.123456789, user="ada", releases=True, **more):
    "A small session with every kind of awkward key."
    rng = np.random.default_rng(len(keys) + n)
    signal = rng.normal(0, 20, (n, 2, channels)).astype(np.float32)
    if not right: signal[:, 1] = 0
    times = start + np.arange(n) / rate if clock is None else clock
    press = np.sort(rng.uniform(times[5], times[-20], len(keys)))
    release = press + rng.uniform(0.01, 0.3, len(keys)) if releases else np.full(len(keys), np.nan)
    return open_session(write_session(path, signal, times, keys, press, release, name=name or path.stem, user=user, rate_hz=rate, prompts=prompts, **more))


def samples(session):
    "The sample of every press, as labels find it."
    return np.searchsorted(read_times(session), session.press_times)


# --- where a moment falls ----------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(5))
def test_positions_rounded_up_are_what_binary_search_finds(seed):
    "On clocks that jitter, stand still and pause; a whole number just where a moment is a sample."
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0, 1e-3, 500) * rng.integers(0, 2, 500)
    steps[::100] = 7.0
    times = 1.6e9 + np.cumsum(steps)
    moments = np.concatenate([rng.uniform(times[0], times[-1], 2000), times, np.nextafter(times, np.inf), np.nextafter(times, 0)])
    moments = moments[(moments >= times[0]) & (moments <= times[-1])]
    places = sample_positions(times, moments)
    assert np.array_equal(np.ceil(places), np.searchsorted(times, moments))
    assert np.array_equal(places == np.rint(places), np.isin(moments, times))
    order = np.argsort(moments)
    assert (np.diff(places[order]) >= 0).all()


def test_moments_outside_stay_inside():
    assert sample_positions(np.array([1.0, 2.0, 3.0]), np.array([-5.0, 1.0, 99.0])).tolist() == [0.0, 0.0, 2.0]


# --- MNE ----------------------------------------------------------------------------------------

def test_raw_is_in_volts_and_says_so(mne, tmp_path):
    session = make(tmp_path / "a.hdf5")
    raw = to_raw(session)
    assert raw.ch_names == channel_names(16) and raw.ch_names[0] == "emg0_left" and raw.ch_names[-1] == "emg15_right"
    assert set(raw.get_channel_types()) == {"emg"} and raw.info["sfreq"] == 500.0
    assert abs(raw.info["meas_date"].timestamp() - session.first_time) < 1e-6
    signal = read_signal(session)
    assert np.allclose(raw.get_data("emg3_right")[0], signal[:, 1, 3].astype(float) * 1e-6, rtol=1e-12, atol=0)
    published = to_raw(session, published=True)
    assert set(published.get_channel_types()) == {"eeg"} and np.array_equal(published.get_data()[5], signal[:, 0, 5].astype(float))


def test_published_events_have_no_duration_and_are_drawn_to_samples(mne, tmp_path):
    clock = 1.6e9 + np.arange(1000) / 500
    press = clock[0] + np.array([0.1, 0.5001, 1.0, 5.0])  # the last one after the end
    session = open_session(write_session(tmp_path / "a.hdf5", np.ones((1000, 2, 2), np.float32), clock, list("abcd"), press, press + 0.1, name="a", user="u", rate_hz=500.0))
    raw = to_raw(session, published=True)
    assert raw.annotations.description.tolist() == ["key/a", "key/b", "key/c", "key/d"] and not raw.annotations.duration.any()
    assert np.allclose(raw.annotations.onset * 500, [*np.searchsorted(clock, press[:3]), 999], atol=1e-6)
    ours = to_raw(session)
    assert ours.annotations.description.tolist() == ["key/a", "key/b", "key/c"] and json.loads(ours.info["description"])["left_out"] == {"presses": 1, "prompts": 0}
    thousandth = 1.001e-3 / 500  # of a sample, the distance that places keep from samples they are not at
    assert np.allclose(ours.annotations.duration, 0.1, rtol=0, atol=thousandth) and abs(ours.annotations.onset[1] - 0.5001) < thousandth


@pytest.mark.parametrize("case", ["plain", "no releases", "wristband", "no keys", "non-integer rate"])
def test_there_and_back_is_equal_to_the_last_bit(mne, tmp_path, case):
    more = {"plain": {}, "no releases": dict(releases=False), "wristband": dict(rate=200.0, channels=8, right=False), "no keys": dict(keys=()),
            "non-integer rate": dict(rate=1925.926, n=6001)}[case]
    prompts = [{"name": "text_prompt", "payload": {"text": "tab\there \\n real⏎"}, "start": 1.6e9 + 1, "end": 1.6e9 + 2}, {"name": "rest", "payload": None, "start": 1.6e9 + 2.5}]
    session = make(tmp_path / "a.hdf5", prompts=prompts, condition="on_table", quality_tags=("odd",), attributes={"keyboard": "split", "n": 3}, **more)
    back = open_session(from_raw(to_raw(session), tmp_path / "b.hdf5"), check_signal=True)
    assert np.array_equal(read_signal(back), read_signal(session)) and np.array_equal(read_times(back), read_times(session))
    assert back.keys == session.keys and np.array_equal(back.press_times, session.press_times)
    assert np.array_equal(back.release_times, session.release_times, equal_nan=True)
    same = ("name", "user", "condition", "rate_hz", "n_channels", "quality_tags", "prompts")
    assert [getattr(back, k) for k in same] == [getattr(session, k) for k in same]
    assert back.attributes["keyboard"] == "split" and back.attributes["n"] == 3


def stuttering(n=3001, rate=500.0):
    "A clock with jitter, repeats and a pause of three seconds."
    rng = np.random.default_rng(8)
    steps = rng.uniform(0.5, 1.5, n) / rate
    steps[rng.integers(0, n, 50)] = 0
    steps[n // 2] += 3.0
    return 1.6e9 + np.cumsum(steps)


def test_labels_stay_at_their_samples_on_a_clock_that_stutters(mne, bids, tmp_path):
    session = make(tmp_path / "a.hdf5", clock=stuttering(), keys=KEYS * 20)
    back = open_session(from_raw(to_raw(session), tmp_path / "b.hdf5"))
    through_bids, = read_bids(write_bids([session], tmp_path / "bids", license="n/a"), tmp_path / "out")
    for other in (back, open_session(through_bids)):
        assert np.array_equal(samples(other), samples(session)) and other.keys == session.keys
        assert (np.diff(read_times(other)) > 0).all()


def test_a_stretch_holds_just_its_presses(mne, tmp_path):
    session = make(tmp_path / "a.hdf5", keys=KEYS * 10)
    back = open_session(from_raw(to_raw(session, 700, 1900), tmp_path / "b.hdf5"))
    at = samples(session)
    times = read_times(session)
    inside = (session.press_times >= times[700]) & (session.press_times <= times[1899])
    assert 0 < inside.sum() < len(inside) and np.array_equal(samples(back), at[inside] - 700)
    assert back.keys == tuple(k for k, i in zip(session.keys, inside, strict=True) if i)
    assert np.array_equal(read_signal(back), read_signal(session, 700, 1900))


def test_a_crop_in_mne_keeps_labels_and_makes_none_up(mne, tmp_path):
    "A key held over the cut stays an annotation in MNE, although its press is gone."
    clock = 1.6e9 + np.arange(2000) / 500
    press = clock[0] + np.array([0.5, 0.9, 2.0])
    session = open_session(write_session(tmp_path / "a.hdf5", np.ones((2000, 2, 2), np.float32), clock, list("abc"), press, press + np.array([0.1, 0.5, 0.1]), name="a", user="u", rate_hz=500.0))
    raw = to_raw(session).crop(tmin=1.0)
    assert "key/b" in raw.annotations.description
    back = open_session(from_raw(raw, tmp_path / "b.hdf5"))
    assert back.keys == ("c",) and samples(back).tolist() == [500] and abs(back.first_time - clock[500]) < 1e-6


def test_an_edited_onset_wins_over_the_exact_time(mne, tmp_path):
    session = make(tmp_path / "a.hdf5")
    raw = to_raw(session)
    moved = raw.annotations.copy()
    moved.onset += 0.02
    raw.set_annotations(moved)
    back = open_session(from_raw(raw, tmp_path / "b.hdf5"))
    assert np.array_equal(samples(back), samples(session) + 10)


def test_presses_of_one_moment_keep_their_order(mne, bids, tmp_path):
    "MNE sorts by onset and then by duration: the first is held longer here."
    clock = 1.6e9 + np.arange(1000) / 500
    press = clock[0] + np.array([0.3, 0.3, 0.7])
    session = open_session(write_session(tmp_path / "a.hdf5", np.ones((1000, 2, 2), np.float32), clock, list("bac"), press, press + np.array([0.4, 0.1, 0.1]), name="a", user="u", rate_hz=500.0))
    raw = to_raw(session)
    assert raw.annotations.description.tolist() == ["key/a", "key/b", "key/c"]
    path, = read_bids(write_bids([session], tmp_path / "bids", license="n/a"), tmp_path / "out")
    for back in (from_raw(raw, tmp_path / "b.hdf5"), path):
        assert open_session(back).keys == ("b", "a", "c")


def test_a_recording_of_other_origin(mne, tmp_path):
    "Channels without our names: first half left, second half right; no note, no numbers."
    data = np.random.default_rng(1).normal(0, 1e-5, (8, 1000))
    raw = mne.io.RawArray(data, mne.create_info([f"EMG{c}" for c in range(8)], 500.0, "emg"), verbose="error")
    raw.set_annotations(mne.Annotations([0.5, 1.0, 1.2], [0.1, 0.0, 0.5], ["key/a", "key/b", "BAD"]))
    session = open_session(from_raw(raw, tmp_path / "other.hdf5", user="eve"))
    assert session.keys == ("a", "b") and samples(session).tolist() == [250, 500] and session.name == "other" and session.condition == "on_keyboard"
    assert np.isnan(session.release_times).tolist() == [False, True]
    assert np.array_equal(read_signal(session)[:, 1, 2], (data[6] * 1e6).astype(np.float32))
    with pytest.raises(BidsError, match="give user="): from_raw(raw, tmp_path / "x.hdf5")
    with pytest.raises(BidsError, match="4 of the left and 3 of the right|3 of the left and 4 of the right"): from_raw(raw.copy().drop_channels("EMG0"), tmp_path / "x.hdf5", user="eve")
    raw.apply_function(lambda x: x * 1e6, picks="emg")
    with pytest.raises(BidsError, match="published=True"): from_raw(raw, tmp_path / "x.hdf5", user="eve")
    assert not (tmp_path / "x.hdf5").exists()
    assert np.allclose(read_signal(open_session(from_raw(raw, tmp_path / "y.hdf5", user="eve", published=True))), read_signal(session))


def test_channels_in_any_order_find_their_place(mne, tmp_path):
    session = make(tmp_path / "a.hdf5")
    raw = to_raw(session)
    raw.reorder_channels(sorted(raw.ch_names, reverse=True))
    assert np.array_equal(read_signal(open_session(from_raw(raw, tmp_path / "b.hdf5"))), read_signal(session))


def test_damage_is_refused(mne, tmp_path):
    session = make(tmp_path / "a.hdf5")
    with pytest.raises(BidsError, match="at least 2"): to_raw(session, 5, 6)
    with h5py.File(session.path, "r+") as f:
        rows = f["emg2qwerty/timeseries"][100:102]
        rows["time"] = rows["time"][::-1]
        f["emg2qwerty/timeseries"][100:102] = rows
    with pytest.raises(SessionError, match="runs backwards at sample 101"): to_raw(session)
    with pytest.raises(SessionError, match="runs backwards"): write_bids([session], tmp_path / "bids", license="n/a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5"]


# --- BDF ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("rate, n, channels", [(2000.0, 4000, 16), (2000.0, 70001, 2), (200.0, 401, 8), (62.5, 1001, 2)])
def test_bdf_loses_half_a_step_and_nothing_else(mne, tmp_path, rate, n, channels):
    session = make(tmp_path / "a.hdf5", n=n, rate=rate, channels=channels, right=False, keys=())
    raw = mne.io.read_raw_bdf(write_bdf(session, tmp_path / "a.bdf"), preload=True, verbose="error")
    signal = read_signal(session).reshape(n, -1).T
    got = raw.get_data() * 1e6
    step = 2.0 ** np.ceil(np.log2(np.abs(signal).max(axis=1).clip(2**-5))) / (2**23 - 1)
    assert raw.info["sfreq"] == rate and raw.n_times >= n and raw.ch_names == channel_names(channels)
    assert (np.abs(got[:, :n] - signal).max(axis=1) <= 0.501 * step).all()
    assert not got[channels:].any(), "zeros stay zeros"
    assert np.allclose(got[:, n:], got[:, n - 1:n])


def test_bdf_refuses_what_it_cannot_hold(tmp_path):
    odd = make(tmp_path / "odd.hdf5", rate=1925.926)
    with pytest.raises(BidsError, match="resample to a whole rate"): write_bdf(odd, tmp_path / "x.bdf")
    big = open_session(write_session(tmp_path / "big.hdf5", np.full((100, 2, 2), 1e7, np.float32), np.arange(100) / 2000, [], np.zeros(0), np.zeros(0), name="big", user="u"))
    with pytest.raises(BidsError, match="check the unit"): write_bdf(big, tmp_path / "x.bdf")
    assert not (tmp_path / "x.bdf").exists()


# --- BIDS ---------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shared_folder(bids, tmp_path_factory):
    "Sessions of three users, given in no order, and the BIDS folder made of them."
    here = tmp_path_factory.mktemp("bids")
    toys = list(open_corpus(toy_corpus(here / "toys", n_sessions=2, seconds=6.0, users=("zoe",))))
    prompts = [{"name": "text_prompt", "payload": {"text": 'say "hi"⏎'}, "start": 1.6e9 + 1, "end": 1.6e9 + 2}, {"name": "rest", "payload": None, "start": 1.6e9 + 2, "end": 1.6e9 + 3}]
    later = make(here / "later.hdf5", start=1.7e9, user="ada", keys=KEYS * 3)
    sooner = make(here / "sooner.hdf5", user="ada", prompts=prompts, releases=False)
    band = make(here / "band.hdf5", user="myo 7", rate=200.0, channels=8, right=False, n=1001)
    sessions = {s.name: s for s in (*toys, later, band, sooner)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = write_bids(sessions.values(), here / "root", license="CC-BY-4.0", name="Tests", authors=["A", "B"])
    return sessions, root


def test_people_and_sessions_are_numbered_in_order(shared_folder):
    sessions, root = shared_folder
    assert read_tsv(root / "participants.tsv") == {"participant_id": ["sub-01", "sub-02", "sub-03"], "user": ["ada", "myo 7", "zoe"]}
    side = {p.name: json.loads(p.read_text())["Semgbook"]["session_name"] for p in root.rglob("*_emg.json")}
    assert side == {f"sub-{u}_ses-{s}_task-emg2qwerty_emg.json": n for u, s, n in
                    (("01", "01", "sooner"), ("01", "02", "later"), ("02", "01", "band"), ("03", "01", "toy-0"), ("03", "02", "toy-1"))}
    assert sorted(p.name for p in root.iterdir()) == ["README.md", "dataset_description.json", "participants.json", "participants.tsv",
        "space-leftWristband_coordsystem.json", "space-rightWristband_coordsystem.json", "sub-01", "sub-02", "sub-03"]
    assert not [p for p in root.parent.iterdir() if p.name.startswith(".")]


def test_required_fields_are_there(shared_folder):
    "By hand, after the electromyography chapter of the specification."
    sessions, root = shared_folder
    top = json.loads((root / "dataset_description.json").read_text())
    assert top["License"] == "CC-BY-4.0" and top["Name"] == "Tests" and top["Authors"] == ["A", "B"] and top["BIDSVersion"] >= "1.11" and top["DatasetType"] == "raw"
    for file in root.rglob("*_emg.json"):
        side, stem = json.loads(file.read_text()), str(file).removesuffix("_emg.json")
        session = sessions[side["Semgbook"]["session_name"]]
        for field in ("TaskName", "EMGReference", "EMGGround", "SamplingFrequency", "PowerLineFrequency", "SoftwareFilters", "RecordingType", "EMGPlacementScheme"):
            assert field in side, field
        assert side["EMGPlacementScheme"] == "Other" and "FIXME" not in side["EMGPlacementSchemeDescription"] and side["Manufacturer"] == "n/a"
        assert side["SamplingFrequency"] == session.rate_hz and side["EMGChannelCount"] == 2 * session.n_channels
        assert side["RecordingDuration"] == session.n_samples / session.rate_hz
        channels = read_tsv(f"{stem}_channels.tsv")
        assert list(channels)[:3] == ["name", "type", "units"] and channels["name"] == channel_names(session.n_channels) and {*channels["type"]} == {"EMG"} and {*channels["units"]} == {"uV"}
        electrodes = read_tsv(stem.rsplit("_task", 1)[0] + "_electrodes.tsv")
        assert list(electrodes)[:5] == ["name", "x", "y", "z", "coordinate_system"] and set(channels["signal_electrode"]) == set(electrodes["name"])
        for space in {*electrodes["coordinate_system"]}:
            system = json.loads((root / f"space-{space}_coordsystem.json").read_text())
            assert set(system) == {"EMGCoordinateSystem", "EMGCoordinateUnits", "EMGCoordinateSystemDescription"}
        x, y = (np.array(electrodes[k], float).reshape(2, -1) - 50 for k in "xy")
        assert np.allclose(np.hypot(x, y), 50) and np.allclose(np.diff(np.unwrap(np.arctan2(y, x)), axis=1), 2 * np.pi / session.n_channels)
        events = read_tsv(f"{stem}_events.tsv")
        assert list(events)[:2] == ["onset", "duration"] and set(json.loads(open(f"{stem}_events.json").read())) <= set(events)


def test_the_validator_finds_no_error(shared_folder):
    tool = shutil.which("bids-validator-deno") or shutil.which("bids-validator")
    if not tool: pytest.skip("bids-validator is not installed; required fields are checked by hand above")
    done = subprocess.run([tool, "--json", str(shared_folder[1])], capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert not [i for i in report["issues"]["issues"] if i["severity"] == "error"]


def test_mne_bids_reads_it_itself(bids, shared_folder):
    "Its own reader: signal, type, date, and every event it does not trim."
    sessions, root = shared_folder
    path = bids.BIDSPath(subject="01", session="02", task="emg2qwerty", datatype="emg", suffix="emg", extension=".bdf", root=root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = bids.read_raw_bids(path, verbose="error")
    later = sessions["later"]
    assert set(raw.get_channel_types()) == {"emg"} and abs(raw.info["meas_date"].timestamp() - later.first_time) < 1e-5
    assert np.abs(raw.get_data()[:, :later.n_samples].T * 1e6 - read_signal(later).reshape(later.n_samples, -1)).max() < 1e-4
    assert np.array_equal(np.ceil(raw.annotations.onset * 500 - 1e-4), samples(later))
    assert np.allclose(np.diff(np.array([e["start"] for e in raw.annotations.extras], float)), np.diff(later.press_times))
    assert np.sum(raw.annotations.description == 'key/"') == 3


def test_read_back(shared_folder, tmp_path):
    sessions, root = shared_folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = read_bids(root, tmp_path)
    assert {p.name for p in paths} == {f"{n}.hdf5" for n in sessions}
    for path in paths:
        back, was = open_session(path, check_signal=True), sessions[path.stem]
        assert (back.name, back.user, back.rate_hz, back.n_channels, back.n_samples, back.keys) == (was.name, was.user, was.rate_hz, was.n_channels, was.n_samples, was.keys)
        assert np.array_equal(back.press_times, was.press_times) and np.array_equal(back.release_times, was.release_times, equal_nan=True)
        assert np.array_equal(read_times(back), read_times(was)) and back.prompts == was.prompts
        assert np.abs(read_signal(back) - read_signal(was)).max() <= 0.6 * 2.0 ** np.ceil(np.log2(np.abs(read_signal(was)).max())) / 2**23
    with pytest.raises(BidsError, match="is there already"): read_bids(root, tmp_path)


def test_some_subjects(shared_folder, tmp_path):
    _, root = shared_folder
    for i, who in enumerate((["ada"], ["01"], ["sub-01"])):
        assert [p.stem for p in read_bids(root, tmp_path / str(i), who)] == ["sooner", "later"]
    with pytest.raises(BidsError, match="no emg recordings .* of nobody"): read_bids(root, tmp_path / "x", ["nobody"])
    with pytest.raises(BidsError, match="no eeg recordings"): read_bids(root, tmp_path / "x", published=True)
    assert not (tmp_path / "x").exists()


def test_published_folder(bids, tmp_path):
    "BrainVision, called EEG, unscaled: and back."
    session = make(tmp_path / "a.hdf5", keys=tuple("abc") + ('"',))
    root = write_bids([session], tmp_path / "root", license="n/a", published=True)
    assert next(root.rglob("*.vhdr")).parent.name == "eeg"
    path, = read_bids(root, tmp_path / "out", published=True)
    back = open_session(path)
    assert back.keys == session.keys and np.array_equal(samples(back), samples(session)) and np.allclose(read_signal(back), read_signal(session), rtol=1e-5, atol=1e-4)


def test_nothing_is_overwritten_and_nothing_half_written(bids, tmp_path):
    one, two = make(tmp_path / "one.hdf5"), make(tmp_path / "two.hdf5", user="zoe")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("all of it")
    with pytest.raises(BidsError, match="already has something"): write_bids([one], tmp_path / "used", license="n/a")
    for sessions, word in (([], "no sessions"), ([one, one], "two sessions are called 'one'")):
        with pytest.raises(BidsError, match=word): write_bids(sessions, tmp_path / "new", license="n/a")
    with pytest.raises(BidsError, match="letters and digits"): write_bids([one], tmp_path / "new", license="n/a", task="a_b")
    with pytest.raises(BidsError, match="without .ds"): write_bids([one], tmp_path / "my.data", license="n/a")
    two.path.unlink()  # the second session vanishes
    with pytest.raises(SessionError, match="no such file"): write_bids([one, two], tmp_path / "new", license="n/a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.hdf5", "used"] and [p.name for p in (tmp_path / "used").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert write_bids([one], tmp_path / "empty", license="n/a").is_dir()


# --- tables -------------------------------------------------------------------------------------

def write_table(path, *lines):
    path.write_text("\n".join("\t".join(map(str, line)) for line in lines) + "\n", encoding="utf-8")
    return path


def test_tables_have_no_quoting(tmp_path):
    path = write_table(tmp_path / "t.tsv", ("onset", "key"), (0.1, '"'), (0.2, "a"), (0.3, '"'), (0.4, " "), (0.5, "#"), (0.6, "\x1c"))
    assert read_tsv(path)["key"] == ['"', "a", '"', " ", "#", "\x1c"]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_tsv(path) == {"onset": ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"], "key": ['"', "a", '"', " ", "#", "\x1c"]}


@pytest.mark.parametrize("column", ["trial_type", "type", "event_type", "value"])
def test_published_shape_with_pairs(tmp_path, column):
    "Presses and releases of one key twice, overlapping another, out of order in the file, one never released."
    rows = [(1.30, 0, "keystroke_release", '"', "n/a"), (1.00, 0, "keystroke_press", '"', "n/a"), (1.20, 0, "keystroke_press", "Key.space", "n/a"), (1.25, 0, "keystroke_release", "Key.space", "n/a"),
            (0.5, 3.0, "prompt", "n/a", 'the "six"'), (2.0, 0, "keystroke_press", '"', "n/a"), (2.1, 0, "keystroke_release", '"', "n/a"), (0.1, 0, "keystroke_release", "q", "n/a"),
            (3.0, 0, "keystroke_press", "z", "n/a"), (3.1, 0, "boundary", "n/a", "n/a")]
    events = events_of_table(write_table(tmp_path / "e.tsv", ("onset", "duration", column, "key", "prompt_text"), *rows))
    assert [(round(a, 3), round(d, 3), t) for a, d, t, _ in events] == [(0.5, 3.0, 'prompt/the "six"'), (1.0, 0.3, 'key/"'), (1.2, 0.05, "key/Key.space"), (2.0, 0.1, 'key/"'), (3.0, 0.0, "key/z")]


def test_published_shape_with_the_key_in_the_name(tmp_path):
    events = events_of_table(write_table(tmp_path / "e.tsv", ("onset", "duration", "trial_type"), (1, 0.1, 'keystroke_"'), (2, "n/a", "keystroke_Key.backspace"), (3, 0.2, "keystroke__")))
    assert [e[2] for e in events] == ['key/"', "key/Key.backspace", "key/_"] and [e[1] for e in events] == [0.1, 0.0, 0.2]


@pytest.mark.parametrize("lines, message", [
    ([("onset", "trial_type"), (1.0, "key/a", 3)], "row 2 has 3 cells, not 2"), ([("time", "trial_type"), (1.0, "key/a")], "no column onset"),
    ([("onset", "trial_type"), (1.0, "stimulus")], "not a table of key presses"), ([("onset", "trial_type"), ("n/a", "key/a")], "not a time in seconds"),
    ([("onset", "trial_type"), (1.0, "keystroke_press")], "no key; give the table a column key")])
def test_tables_that_say_nothing_are_refused(tmp_path, lines, message):
    with pytest.raises(BidsError, match=message): events_of_table(write_table(tmp_path / "e.tsv", *lines))
    with pytest.raises(BidsError, match="no such table"): events_of_table(tmp_path / "absent.tsv")


def test_a_folder_in_the_published_shape(bids, shared_folder, tmp_path):
    "Our folder, its tables and names rewritten after the description of the public edition: same sessions."
    sessions, root = shared_folder
    folder = tmp_path / "nm"
    target = folder / "sub-777" / "ses-1625" / "emg"
    target.mkdir(parents=True)
    source, stem = root / "sub-01/ses-02/emg/sub-01_ses-02_task-emg2qwerty", "sub-777_ses-1625_task-typing"
    shutil.copy(f"{source}_emg.bdf", target / f"{stem}_emg.bdf")
    raw = (target / f"{stem}_emg.bdf").read_bytes()
    names = "".join(f"EMG{c}".ljust(16) for c in range(32)).encode()
    (target / f"{stem}_emg.bdf").write_bytes(raw[:256] + names + raw[256 + len(names):])
    side = json.loads(open(f"{source}_emg.json").read())
    side.pop("Semgbook")
    (target / f"{stem}_emg.json").write_text(json.dumps(side))
    write_table(target / f"{stem}_channels.tsv", ("name", "type", "units", "group"), *[(f"EMG{c}", "EMG", "V", ("left", "right")[c // 16]) for c in range(32)])
    shutil.copy(root / "dataset_description.json", folder)
    write_table(folder / "participants.tsv", ("participant_id",), ("sub-777",))
    later = sessions["later"]
    kept = [i for i, k in enumerate(later.keys) if k not in "\t\n"]
    onset = (later.press_times - later.first_time)[kept]
    write_table(target / f"{stem}_events.tsv", ("onset", "duration", "trial_type", "key"), *[(f"{a:.9f}", 0.1, f"keystroke_{later.keys[i]}", later.keys[i]) for a, i in zip(onset, kept, strict=True)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # mne-bids misses the tables of dates
        path, = read_bids(folder, tmp_path / "out", ["777"])
    back = open_session(path)
    assert back.user == "777" and back.name == stem and back.keys == tuple(later.keys[i] for i in kept)
    assert np.array_equal(samples(back), samples(later)[kept]) and np.abs(read_signal(back, 0, later.n_samples) - read_signal(later)).max() < 1e-4


def test_real_key_logs(bids, shared, tmp_path):
    "Two real logs with their prompts, on a thin signal: labels and prompts come back as they were."
    for file in sorted(shared("data/emg2qwerty_sessions").glob("*.json")):
        log = json.loads(file.read_text())
        press, release = (np.array([s[k] for s in log["keystrokes"]], float) for k in ("start", "end"))
        clock = np.arange(press[0] - 1, press[-1] - 0.5, 1 / 250)  # the last presses come after the end
        session = open_session(write_session(tmp_path / f"{file.stem[:20]}.hdf5", np.ones((len(clock), 2, 1), np.float32), clock, [s["key"] for s in log["keystrokes"]], press, release,
                                             name=file.stem[:20], user=log["user"], rate_hz=250.0, prompts=log.get("prompts") or ()))
        path, = read_bids(write_bids([session], tmp_path / file.stem[:10], license="n/a"), tmp_path / "out")
        back, n = open_session(path), int((press <= clock[-1]).sum())
        assert 1000 < n < len(press) and back.keys == session.keys[:n] and np.array_equal(samples(back), samples(session)[:n])
        assert back.prompts == tuple(p for p in session.prompts if p["start"] <= clock[-1] and p["end"] >= clock[0])


def test_without_the_extra_the_message_says_what_to_do(tmp_path):
    "In a process where the two packages cannot be found."
    session = make(tmp_path / "a.hdf5")
    code = ("import sys; sys.modules['mne'] = sys.modules['mne_bids'] = None\n"
            "from semgbook.bids import *; from semgbook.session import open_session\n"
            f"s = open_session({str(session.path)!r})\n"
            "for f in (lambda: to_raw(s), lambda: write_bids([s], 'never', license='n/a')):\n"
            "    try: f()\n"
            "    except BidsError as e: print(e)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.count("pip install 'semgbook[bids]'") == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5"]
