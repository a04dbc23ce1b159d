"Sessions: round trips, golden and real files, and every kind of damage with the message it must give."
import hashlib
import json
import os
import signal as signals
import warnings
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from semgbook import session as module
from semgbook.charset import QWERTY
from semgbook.session import (DATASET, GROUP, SessionError, list_sessions, open_corpus, open_session, read_signal, read_times,
                              row_dtype, write_session)

TABLE = f"{GROUP}/{DATASET}"


def arrays(n=300, c=4, rate=200.0, presses=5):
    rng = np.random.default_rng(n)
    press = 1.6e9 + np.sort(rng.uniform(0, n / rate, presses))
    return dict(signal=rng.normal(size=(n, 2, c)).astype(np.float32), times=1.6e9 + np.arange(n) / rate, keys=list("abcde")[:presses],
                press_times=press, release_times=press + 0.1, user="ada", rate_hz=rate)


@pytest.fixture
def good(tmp_path):
    return write_session(tmp_path / "good.hdf5", **arrays(), name="good")


def edit(path, change):
    "Change an HDF5 file in place, past all checks."
    with h5py.File(path, "r+") as f:
        change(f)
    return path


def attributes(**values):
    return lambda f: f[GROUP].attrs.update(values)


def without(name):
    return lambda f: f[GROUP].attrs.pop(name)


def rows(column, index, value):
    def change(f):
        table = f[TABLE][...]
        table[column][index] = value
        f[TABLE][...] = table
    return change


def table(data):
    def change(f):
        del f[TABLE]
        f[GROUP].create_dataset(DATASET, data=data)
    return change


def log(**changes):
    return attributes(keystrokes=json.dumps([{"key": "a", "start": 1.0, "end": 1.1}, {"key": "b", "start": 2.0} | changes]))


# ---- round trips

@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("c", [1, 8, 16])
def test_round_trip(tmp_path, compression, c):
    given = arrays(n=40_000, c=c) | dict(keys=["Key.space", "é", "\"", "⌫", "\\"])
    given["release_times"][2] = np.nan
    prompts = [{"name": "text_prompt", "payload": {"text": "hello ⏎"}, "start": 1.0, "end": 2.0}, {"name": "Intro", "payload": None}]
    path = write_session(tmp_path / "s.hdf5", **given, name="näme", prompts=prompts, quality_tags=["high-backspaces"], attributes={"device": "myo", "n": 3},
                         compression=compression)
    s = open_session(path, check_signal=True)
    assert (s.name, s.user, s.condition, s.rate_hz, s.n_channels, s.n_samples) == ("näme", "ada", "on_keyboard", 200.0, c, 40_000)
    assert s.contiguous == (compression is None) and s.keys == tuple(given["keys"]) and s.prompts == tuple(prompts) and s.missing == ()
    assert s.quality_tags == ("high-backspaces",) and s.attributes == {"device": "myo", "n": 3, "duration_mins": s.duration_s / 60}
    assert np.array_equal(s.press_times, given["press_times"]) and np.array_equal(s.release_times, given["release_times"], equal_nan=True)
    assert np.array_equal(read_signal(s), given["signal"]) and np.array_equal(read_times(s), given["times"])
    assert read_signal(s).dtype == np.float32 and read_times(s).dtype == s.press_times.dtype == np.float64
    for start, stop in ((0, 1), (16_000, 17_000), (39_999, None), (5, 5)):
        assert np.array_equal(read_signal(s, start, stop), given["signal"][start:stop])
        assert np.array_equal(read_times(s, start, stop), given["times"][start:stop])
    again = write_session(tmp_path / "again.hdf5", read_signal(s), read_times(s), s.keys, s.press_times, s.release_times, name=s.name, user=s.user,
                          rate_hz=s.rate_hz, prompts=s.prompts, quality_tags=s.quality_tags, attributes=s.attributes)
    assert np.array_equal(open_session(again).press_times, s.press_times) and open_session(again).attributes == s.attributes


def test_sessions_are_values_and_their_labels_cannot_be_changed(good):
    a, b = open_session(good), open_session(good)
    assert a == b and hash(a) == hash(b) and len(repr(a)) < 500
    with pytest.raises(ValueError):
        a.press_times[0] = 0
    with pytest.raises(AttributeError):
        a.user = "x"


def test_no_presses_is_a_session(tmp_path):
    s = open_session(write_session(tmp_path / "s.hdf5", **arrays(presses=0), name="s"))
    assert s.keys == () and s.press_times.shape == s.release_times.shape == (0,)


def test_columns_are_found_by_name(tmp_path, good):
    given = arrays()
    for dtype in ([("time", ">f8"), ("emg_left", "<f4", 4), ("emg_right", ">f4", 4)], [("emg_left", "<f4", 4), ("x", "u1"), ("time", "<f8"), ("y", "S3"), ("emg_right", "<f4", 4)]):
        data = np.zeros(300, dtype)
        data["emg_left"], data["emg_right"], data["time"] = given["signal"][:, 0], given["signal"][:, 1], given["times"]
        s = open_session(edit(good, table(data)), check_signal=True)
        assert np.array_equal(read_signal(s), given["signal"]) and np.array_equal(read_times(s), given["times"])


def test_a_range_that_is_not_there_is_refused(good):
    s = open_session(good)
    for start, stop in ((-1, 5), (0, 301), (10, 5)):
        with pytest.raises(SessionError, match=r"good\.hdf5: samples .* it has 0 to 300"):
            read_signal(s, start, stop)
    edit(good, table(np.zeros(100, row_dtype(4))))
    with pytest.raises(SessionError, match="not what it was when the session was opened"):
        read_signal(s)


# ---- golden and real

@pytest.mark.parametrize("name", ["labels_windows", "labels_other_condition"])
def test_golden_files(shared, name):
    golden = json.loads(shared("golden/labels_windows.json").read_text())
    expected = golden if name == "labels_windows" else golden["other_condition"]
    s = open_session(shared(f"golden/{name}.hdf5"), check_signal=True)
    assert s.n_samples == expected["n_samples"] and s.rate_hz == 2000.0 and s.n_channels == 16
    assert s.condition == expected.get("condition", "on_keyboard") and not s.contiguous
    signal, times = read_signal(s), read_times(s)
    assert signal.shape == (s.n_samples, 2, 16) and (times[0], times[-1]) == (s.first_time, s.last_time)
    if name == "labels_windows":
        assert (s.first_time, s.last_time, len(s.keys)) == (golden["first_time"], golden["last_time"], golden["n_keystrokes"])
        assert QWERTY.clean(s.keys) == golden["all_keystrokes_without_limits"]["text"]
        for window in golden["window_sets"][0]["windows"]:
            part = read_signal(s, *window["read"]).astype(np.float64).sum(axis=(0, 2)) / golden["sample_unit"]
            assert part.tolist() == [window["sum_left"], window["sum_right"]]
    else:
        assert [p["payload"] and p["payload"]["text"] for p in s.prompts] == [c["payload_text"] for c in golden["prompt_cases"]][:len(s.prompts)]


@pytest.mark.parametrize("stem, labels, text_hash", [
    ("2021-07-22-1627004019", 4432, "3b20d8eb4eec7a09a28b9290a900544f8afd16cf944e1543f0bbe901d0644a2e"),
    ("2021-06-04-1622861066", 4569, "e34f1f65f49682f481701d3eec89b15868429b9f51cb12739a7da119ac1bdd4e")])
def test_real_headers(shared, tmp_path, stem, labels, text_hash):
    "The attributes of two real sessions, as they lie in the files, with a little noise as EMG."
    record = json.loads(next(shared("data/emg2qwerty_sessions").glob(f"{stem}*.json")).read_text())
    start = record["keystrokes"][0]["start"] - 1
    n = record.get("num_samples", 20_000)
    data = np.zeros(n, row_dtype(16))
    data["time"] = start + np.arange(n) / 2000
    data["emg_left"][:] = np.random.default_rng(0).normal(size=(n, 1)).astype(np.float32)
    path = tmp_path / "real.hdf5"
    with h5py.File(path, "w") as f:
        group = f.create_group(GROUP)
        group.create_dataset(DATASET, data=data)
        for key, value in record.items():
            if key in ("num_samples", "source", "note"): continue
            if key in ("keystrokes", "prompts"): value = json.dumps(value)
            if key == "quality_check_tags": value = np.array(value, dtype=np.float64)
            group.attrs[key] = value
    s = open_session(path)
    text = QWERTY.text_of_labels(QWERTY.labels_of_keys(s.keys))
    assert len(text) == len(s.keys) == labels and hashlib.sha256(text.encode()).hexdigest() == text_hash
    assert QWERTY.keep_of_keys(s.keys).all() and (s.user, s.name, s.rate_hz, s.n_samples) == ("89335547", record["session_name"], 2000.0, n)
    assert s.quality_tags == () and not np.isnan(s.release_times).any()
    assert np.median(s.release_times - s.press_times) == pytest.approx(0.105, abs=5e-4)
    if stem.startswith("2021-07-22"):
        joined = "".join(p["payload"]["text"] for p in s.prompts if p["payload"])
        assert len(s.prompts) == 154 and len(QWERTY.labels_of_text(joined)) == 4239 and s.attributes["schedule"] == "6.3" and s.missing == ()
    else:
        assert s.prompts == () and set(s.missing) == {"daq_channels", "daq_sample_rate", "quality_check_tags", "duration_mins"}


@pytest.mark.parametrize("value, expected", [
    (np.array([], dtype=np.float64), ()), (np.array(["high-backspaces"], dtype=h5py.string_dtype()), ("high-backspaces",)),
    (np.array([b"a", b"b"]), ("a", "b")), ("one", ("one",)), (h5py.Empty("f8"), ())])
def test_both_shapes_of_quality_tags(good, value, expected):
    assert open_session(edit(good, attributes(quality_check_tags=value))).quality_tags == expected


def test_harmless_oddities_are_tolerated(good):
    odd = dict(session_name=np.bytes_("bytes"), user=7, daq_sample_rate=np.float32(200), daq_channels=4, prompts="null", extra=h5py.Empty("f4"), more=np.eye(2))
    s = open_session(edit(good, attributes(**odd)))
    assert (s.name, s.user, s.rate_hz, s.prompts, s.attributes["more"]) == ("bytes", "7", 200.0, (), [[1, 0], [0, 1]])
    assert open_session(edit(good, without("session_name"))).name == "good"


# ---- damage

DAMAGE = {
    "wrong group": (lambda f: f.move(GROUP, "emg"), "has no group 'emg2qwerty'"),
    "no dataset": (lambda f: f[GROUP].move(DATASET, "x"), "has no dataset 'timeseries'"),
    "group is a dataset": (lambda f: (f.pop(GROUP), f.create_dataset(GROUP, data=[1])), "'emg2qwerty' is not a group"),
    "dataset is a group": (lambda f: (f[GROUP].pop(DATASET), f[GROUP].create_group(DATASET)), "'timeseries' is not a dataset"),
    "soft link": (lambda f: (f.move(GROUP, "x"), f.__setitem__(GROUP, h5py.SoftLink("/x"))), "'emg2qwerty' is a link"),
    "external link": (lambda f: (f.pop(GROUP), f.__setitem__(GROUP, h5py.ExternalLink("other.hdf5", "/x"))), "'emg2qwerty' is a link"),
    "rows elsewhere": (lambda f: (f[GROUP].pop(DATASET), f[GROUP].create_dataset(DATASET, (3,), row_dtype(4), external="x.raw")), "keeps its rows in other files"),
    "plain dtype": (table(np.zeros((10, 9), np.float32)), "timeseries has plain dtype float32"),
    "integer signal": (table(np.zeros(10, [("emg_left", "i2", 4), ("emg_right", "i2", 4), ("time", "f8")])), "timeseries/emg_left has dtype int16; it must be float32"),
    "double signal": (table(np.zeros(10, [("emg_left", "f4", 4), ("emg_right", "f8", 4), ("time", "f8")])), "timeseries/emg_right has dtype float64; it must be float32"),
    "coarse clock": (table(np.zeros(10, [("emg_left", "f4", 4), ("emg_right", "f4", 4), ("time", "f4")])), "timeseries/time has dtype float32; it must be float64"),
    "text clock": (table(np.zeros(10, [("emg_left", "f4", 4), ("emg_right", "f4", 4), ("time", "S9")])), "timeseries/time has dtype"),
    "missing column": (table(np.zeros(10, [("emg_left", "f4", 4), ("time", "f8")])), "has no column emg_right, only emg_left, time"),
    "unequal bands": (table(np.zeros(10, [("emg_left", "f4", 4), ("emg_right", "f4", 5), ("time", "f8")])), r"emg_left \(4,\), emg_right \(5,\)"),
    "electrodes on a grid": (table(np.zeros(10, [("emg_left", "f4", (4, 2)), ("emg_right", "f4", (4, 2)), ("time", "f8")])), r"emg_left \(4, 2\)"),
    "two clocks": (table(np.zeros(10, [("emg_left", "f4", 4), ("emg_right", "f4", 4), ("time", "f8", 2)])), r"time \(2,\)"),
    "zero length": (table(np.zeros(0, row_dtype(4))), r"timeseries has shape \(0,\): no samples"),
    "two dimensions": (table(np.zeros((3, 3), row_dtype(4))), r"timeseries has shape \(3, 3\)"),
    "one clock NaN at the end": (rows("time", -1, np.nan), "field time is nan"),
    "end before start": (rows("time", -1, 0), "field time runs backwards"),
    "no keystrokes": (without("keystrokes"), "attribute keystrokes is missing; add it"),
    "no user": (without("user"), "attribute user is missing"),
    "no condition": (without("condition"), "attribute condition is missing"),
    "user is an array": (attributes(user=np.eye(2)), "attribute user is .* not text"),
    "empty user": (attributes(user=""), "attribute user is '', not text"),
    "malformed keystrokes": (attributes(keystrokes='[{"key": "a", "sta'), "attribute keystrokes is not valid JSON"),
    "malformed prompts": (attributes(prompts="[{]"), "attribute prompts is not valid JSON"),
    "nested without end": (attributes(keystrokes="[" * 20_000), "attribute keystrokes is not valid JSON"),
    "keystrokes an object": (attributes(keystrokes='{"a": 1}'), "attribute keystrokes must be a JSON list of objects"),
    "keystrokes a list of text": (attributes(keystrokes='["a"]'), "attribute keystrokes must be a JSON list of objects"),
    "keystrokes numbers": (attributes(keystrokes=np.arange(3)), "attribute keystrokes is .* not text"),
    "press without key": (attributes(keystrokes='[{"start": 1.0}]'), r"keystrokes\[0\] has key None"),
    "press without start": (attributes(keystrokes='[{"key": "a"}]'), r"keystrokes\[0\] has start None, not a time"),
    "key a number": (log(key=5), r"keystrokes\[1\] has key 5, not a key name"),
    "start as text": (log(start="2.0"), r"keystrokes\[1\] has start 2.0, not a time"),
    "start a boolean": (log(start=True), r"keystrokes\[1\] has start True"),
    "start NaN": (log(start=float("nan")), r"keystrokes\[1\] has start nan, not a finite time"),
    "start infinite": (attributes(keystrokes='[{"key": "a", "start": 1e999}]'), r"keystrokes\[0\] has start inf"),
    "start beyond floats": (attributes(keystrokes='[{"key": "a", "start": 1%s}]' % ("0" * 400)), r"keystrokes\[0\] has start 1000"),
    "end as text": (log(end="x"), r"keystrokes\[1\] has end x, not a time"),
    "unsorted presses": (log(start=0.5), r"keystrokes\[1\] has an earlier start than the one before it; sort"),
    "rate not a number": (attributes(daq_sample_rate="fast"), "attribute daq_sample_rate is 'fast', not a positive number"),
    "rate zero": (attributes(daq_sample_rate=0.0), "attribute daq_sample_rate is 0.0"),
    "rate a list": (attributes(daq_sample_rate=np.array([1.0, 2.0])), "attribute daq_sample_rate is .* not a positive number"),
    "channels contradict": (attributes(daq_channels="16"), "attribute daq_channels is 16, but a row has 4 electrodes"),
    "tags numbers": (attributes(quality_check_tags=np.arange(2.0)), "attribute quality_check_tags is .* not a list of text"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(good, case):
    change, message = DAMAGE[case]
    with pytest.raises(SessionError, match=message) as caught:
        open_session(edit(good, change))
    assert str(good) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("scale, unit", [(1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds")])
@pytest.mark.parametrize("guilty, zero", [("keystrokes", 1.6e9), ("keystrokes", 0.0), ("time", 1.6e9)])
def test_times_in_another_unit_are_refused(tmp_path, scale, unit, guilty, zero):
    "Both by the reader and by the writer; with a clock from zero only presses can be told to be in the wrong unit."
    given = arrays(n=2000)
    shift = 1.6e9 - zero
    given["times"], given["press_times"] = given["times"] - shift, given["press_times"] - shift
    path = write_session(tmp_path / "s.hdf5", **given, name="s")
    def change(f):
        if guilty == "time":
            data = f[TABLE][...]
            data["time"] *= scale
            f[TABLE][...] = data
        else:
            f[GROUP].attrs["keystrokes"] = json.dumps([dict(key="a", start=t) for t in (given["press_times"] * scale).tolist()])
    message = f"{'attribute keystrokes' if guilty == 'keystrokes' else 'field time'} has .* are the times in {unit}.* Divide"
    with pytest.raises(SessionError, match=message): open_session(edit(path, change))
    field = {"keystrokes": "press_times", "time": "times"}[guilty]
    with pytest.raises(SessionError, match=message): write_session(tmp_path / "t.hdf5", **given | {field: given[field] * scale, "release_times": np.full(5, np.nan)}, name="t")
    assert not (tmp_path / "t.hdf5").exists()


@pytest.mark.parametrize("late", [3600.0, -3600.0, 5e6])
@pytest.mark.parametrize("zero", [1.6e9, 0.0])
def test_presses_outside_the_signal_in_the_same_unit_are_tolerated(tmp_path, late, zero):
    "Another clock is not another unit: nothing is refused that merely has no press inside."
    given = arrays(n=2000)
    given["times"] += zero - 1.6e9
    given["press_times"] += zero - 1.6e9 + late
    given["release_times"][:] = np.nan
    s = open_session(write_session(tmp_path / "s.hdf5", **given, name="s"))
    assert len(s.keys) == 5 and not ((s.press_times >= s.first_time) & (s.press_times <= s.last_time)).any()


SAMPLES = {
    "NaN left": (rows("emg_left", (123, 2), np.nan), "field emg_left is nan at sample 123, electrode 2"),
    "infinity right": (rows("emg_right", (299, 0), -np.inf), "field emg_right is -inf at sample 299, electrode 0"),
    "both infinities": (rows("emg_right", ([7, 9], 0), [np.inf, -np.inf]), "field emg_right is inf at sample 7, electrode 0"),
    "clock backwards": (rows("time", 100, 1.6e9), "field time runs backwards at sample 100; sort the samples"),
    "clock NaN": (rows("time", 100, np.nan), "field time is nan at sample 100"),
}


@pytest.mark.parametrize("case", SAMPLES)
@pytest.mark.parametrize("block", [7, 100, 2**14])
def test_damaged_samples_are_named_whatever_the_block(good, monkeypatch, case, block):
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    change, message = SAMPLES[case]
    session = open_session(edit(good, change))
    with pytest.raises(SessionError, match=rf"good\.hdf5: {message}"):
        open_session(good, check_signal=True)
    if "clock" in case:
        with pytest.raises(SessionError, match=message):
            read_times(session)


def test_repeated_times_and_huge_values_are_allowed(good):
    edit(good, rows("time", slice(0, 50), 1.6e9))
    edit(good, rows("emg_left", slice(None), 3e38))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_session(good, check_signal=True).n_samples == 300


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_file_cut_anywhere_is_a_session_error(tmp_path, compression):
    path = write_session(tmp_path / "cut.hdf5", **arrays(n=2000), name="cut", compression=compression)
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 100, *range(500, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(SessionError, match=r"cut\.hdf5: cannot be read as HDF5, it is truncated"):
            open_session(path, check_signal=True)


def test_rows_beyond_the_end_of_the_file(good):
    "The superblock says the file ends early enough, the table does not."
    with h5py.File(good) as f:
        offset = f[TABLE].id.get_offset()
    size = good.stat().st_size
    raw = bytearray(good.read_bytes())
    end = size.to_bytes(8, "little")
    assert raw.count(end, 0, 100) == 1
    at = raw.index(end)
    cut = offset + 50
    raw[at:at + 8] = cut.to_bytes(8, "little")
    good.write_bytes(raw[:cut])
    with pytest.raises(SessionError, match=r"good\.hdf5: .*truncated"):
        open_session(good)


def test_a_spoiled_chunk_is_found_by_the_thorough_check(tmp_path):
    path = write_session(tmp_path / "chunk.hdf5", **arrays(n=20_000), name="chunk", compression="gzip")
    with h5py.File(path) as f:
        info = f[TABLE].id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[info.byte_offset + 10:info.byte_offset + 200] = bytes(190)
    path.write_bytes(raw)
    session = open_session(path)
    with pytest.raises(SessionError, match=r"chunk\.hdf5: "):
        open_session(path, check_signal=True)
    with pytest.raises(SessionError, match=r"chunk\.hdf5: "):
        read_signal(session)


def test_other_kinds_of_file(tmp_path):
    text = tmp_path / "text.hdf5"
    text.write_text("session_name,user\n")
    with pytest.raises(SessionError, match=r"text\.hdf5: cannot be read as HDF5, .* another kind of file"):
        open_session(text)
    with pytest.raises(SessionError, match=r"none\.hdf5: no such file"):
        open_session(tmp_path / "none.hdf5")
    with pytest.raises(SessionError, match="no such file"):
        open_session(tmp_path)


def test_a_wrong_rate_is_noticed_only_where_it_is_assumed(tmp_path):
    path = write_session(tmp_path / "slow.hdf5", **arrays(n=2000), name="slow")
    assert open_session(path).rate_hz == 200.0
    with pytest.raises(SessionError, match="attribute daq_sample_rate is missing and field time runs at 200 Hz, not 2000 Hz"):
        open_session(edit(path, without("daq_sample_rate")))


# ---- the writer refuses what the reader refuses

@pytest.mark.parametrize("change, message", [
    (dict(signal=np.zeros((300, 3, 4))), r"signal has shape \(300, 3, 4\)"), (dict(signal=np.zeros((0, 2, 4)), times=np.zeros(0)), r"T and C at least 1"),
    (dict(signal=np.full((300, 2, 4), np.nan)), "emg_left is nan at sample 0"), (dict(times=np.zeros(299)), r"times \(299,\)"),
    (dict(times=np.arange(300.0)[::-1]), "field time runs backwards at sample 1"), (dict(keys=["a"]), r"1 keys, press_times \(5,\)"),
    (dict(keys=["a", "b", 3, "d", "e"]), r"keystrokes\[2\] has key 3"), (dict(press_times=np.arange(5.0)[::-1]), r"keystrokes\[1\] has an earlier start"),
    (dict(press_times=np.full(5, np.nan)), r"keystrokes\[0\] has start nan"), (dict(rate_hz=0), "daq_sample_rate"), (dict(rate_hz=float("nan")), "daq_sample_rate"),
    (dict(user=""), "attribute user is ''"), (dict(user=None), "attribute user is missing"), (dict(prompts=["text"]), "attribute prompts must be"),
    (dict(quality_tags=[1]), "quality_check_tags"), (dict(attributes={"user": "x"}), "attribute user has a parameter of its own"),
    (dict(attributes={"x": object()}), "attributes cannot be stored")])
def test_the_writer_refuses(tmp_path, change, message):
    with pytest.raises(SessionError, match=message) as caught:
        write_session(tmp_path / "bad.hdf5", **(arrays() | dict(name="bad") | change))
    assert "bad.hdf5" in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("injected"), KeyboardInterrupt("injected"), MemoryError("injected")])
def test_an_exception_in_the_middle_leaves_the_old_file(good, monkeypatch, error):
    before, calls = good.read_bytes(), []
    real = h5py.Dataset.__setitem__

    def break_at_the_third_block(self, index, value):
        calls.append(index)
        if len(calls) == 3: raise error
        real(self, index, value)
    monkeypatch.setattr(h5py.Dataset, "__setitem__", break_at_the_third_block)
    monkeypatch.setattr(module, "BLOCK_ROWS", 64)
    with pytest.raises(type(error), match="injected"):
        write_session(good, **arrays(), name="new")
    assert len(calls) == 3 and good.read_bytes() == before and list(good.parent.iterdir()) == [good]


def forked(work):
    "Run a function in a child process; its exit status (negative: killed by that signal) and its error message."
    if not hasattr(os, "fork"): pytest.skip("this system cannot fork")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as e:
            os.write(writer, str(e).encode()[:4000])
            os._exit(1)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(reader, "rb") as f: return status, f.read().decode()


def write_long(path, compression=None):
    write_session(path, np.random.default_rng(0).normal(size=(50_000, 2, 16)), np.arange(50_000) / 2000, [], [], [], name="n", user="u", compression=compression)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("limit", [0, 50_000, 1_000_000])
def test_a_full_disk_leaves_the_old_file(good, compression, limit):
    "A limit on the file size stands for the disk that is full. (The HDF5 library writing to disk by itself crashes here.)"
    resource, before = pytest.importorskip("resource"), good.read_bytes()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        write_long(good, compression)
    status, message = forked(work)
    assert status == 1 and "the file was not written" in message and "free some space" in message and "good.hdf5" in message
    assert good.read_bytes() == before and list(good.parent.iterdir()) == [good]


def test_a_process_killed_while_writing_leaves_the_old_file(good):
    before = good.read_bytes()

    def work():
        os.replace = lambda *names: os.kill(os.getpid(), signals.SIGKILL)
        write_long(good)
    assert forked(work)[0] == -signals.SIGKILL
    assert good.read_bytes() == before and list_sessions(good.parent) == [good]
    assert all(p.name.startswith(".") and p.suffix == ".tmp" for p in good.parent.iterdir() if p != good)


def test_many_threads_may_write(tmp_path):
    given = arrays(n=20_000)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: write_session(tmp_path / f"{i}.hdf5", **given, name=str(i), compression=[None, "gzip"][i % 2]), range(12)))
    for path in list_sessions(tmp_path): open_session(path, check_signal=True)
    assert len(open_corpus(tmp_path)) == 12


# ---- folders

def test_a_folder_with_bad_files(tmp_path):
    for name in ("b", "a", "c"):
        write_session(tmp_path / f"{name}.hdf5", **arrays(), name=name)
    (tmp_path / "bad.hdf5").write_text("no")
    (tmp_path / "._a.hdf5").write_text("shadow")
    (tmp_path / "notes.txt").write_text("")
    edit(tmp_path / "c.hdf5", rows("emg_left", 5, np.nan))
    assert [p.name for p in list_sessions(tmp_path)] == ["a.hdf5", "b.hdf5", "bad.hdf5", "c.hdf5"]
    for name, check_signal, words in (("bad", False, "another kind"), ("bad", True, "another kind"), ("c", True, "emg_left is nan")):
        with pytest.raises(SessionError, match=words): open_session(tmp_path / f"{name}.hdf5", check_signal)
    for name, check_signal in (("c", False), ("a", True), ("b", True)): assert open_session(tmp_path / f"{name}.hdf5", check_signal).name == name
    with pytest.raises(SessionError, match=r"bad\.hdf5"):
        open_corpus(tmp_path)
    with pytest.warns(UserWarning, match=r"left out .*bad\.hdf5"):
        corpus = open_corpus(tmp_path, skip_bad=True)
    assert [s.name for s in corpus] == ["a", "b", "c"] and isinstance(corpus, tuple) and [p.name for p, _ in corpus.skipped] == ["bad.hdf5"]


def test_copies_and_empty_folders(tmp_path):
    with pytest.raises(SessionError, match="no such folder"):
        list_sessions(tmp_path / "none")
    with pytest.raises(SessionError, match=r"no usable session among 0 \*\.hdf5 files"):
        open_corpus(tmp_path)
    path = write_session(tmp_path / "a.hdf5", **arrays(), name="a")
    (tmp_path / "b.hdf5").write_bytes(path.read_bytes())
    with pytest.raises(SessionError, match=r"b\.hdf5: attribute session_name is 'a' as in a\.hdf5; remove the copy"):
        open_corpus(tmp_path)
    with pytest.warns(UserWarning, match="remove the copy"):
        assert len(open_corpus(tmp_path, skip_bad=True)) == 1
    (tmp_path / "a.hdf5").write_text("")
    (tmp_path / "b.hdf5").write_text("")
    with pytest.warns(UserWarning), pytest.raises(SessionError, match="no usable session among 2"):
        open_corpus(tmp_path, skip_bad=True)
