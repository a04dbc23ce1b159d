"Corpora: every name answers with sessions or says where they would have to be; fetched whole, listed, and checked."
import json
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from semgbook import corpora, downloads
from semgbook.corpora import (CORPORA, RECORDINGS, CorpusError, CorpusSource, check_corpus, check_lines, corpus_folder, describe_corpora, fetch, identify_file, read_metadata,
                              what_recordings, write_users, yaml_list)
from semgbook.downloads import DownloadError, RemoteFile, digest_of, safe_path
from semgbook.protocols import make_split
from semgbook.session import DATASET, GROUP, list_sessions, open_corpus, open_session, read_signal, row_dtype, write_session
from toy_server import CONTENT, FAST, OBJECTS, answer, bucket, names, tar_bytes
from toys import toy_corpus


# ---- the registry

@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_described(name):
    source = CORPORA[name]
    assert source.name == name and source.licence and source.what.split()[0] in ("simulated", "real", "no"), "the word beside a number"
    assert ("simulated" in source.what) == (source.licence == "Apache-2.0"), "only simulated data are this project's own"
    assert bool(source.folder) == bool(source.files or source.bucket) == bool(source.citation)
    for file in source.files:
        assert file.url.startswith("https://") and safe_path(file.path, name)
        assert file.digest is None or re.fullmatch(r"git:[0-9a-f]{40}|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest)
    assert not source.archive or len(source.files) == 1


@pytest.mark.parametrize("name", ["embedded", "fingers", "users"])
def test_embedded_corpora_write_themselves_once(name):
    folder = corpus_folder(name)
    stamps = {p: p.stat().st_mtime_ns for p in list_sessions(folder)}
    sessions = open_corpus(folder)
    assert len(sessions) == len(stamps) >= 2 and len({s.user for s in sessions}) >= 2
    assert corpus_folder(name) == folder == fetch(name) and {p: p.stat().st_mtime_ns for p in list_sessions(folder)} == stamps


def test_ten_people_who_differ(tmp_path, monkeypatch):
    "Ten names, each with their own means taken away, as told apart as the constant says; the split of the presets has nobody twice."
    sessions = open_corpus(corpus_folder("users"))
    assert sorted(s.user for s in sessions) == [f"user{n}" for n in range(10)] and {(s.rate_hz, s.n_channels, s.n_samples) for s in sessions} == {(200.0, 8, 36_000)}
    split = make_split("leave_users_out", sessions)
    assert [len(split.users(role)) for role in ("train", "val", "test")] == [6, 2, 2]
    signals = [read_signal(s) for s in sessions]
    assert all(not x[:, 0].any() and np.abs(x[:-3600, 1].mean(0)).max() < 1e-3 for x in signals), "the left band is silent; the first nine tenths decide the means"
    small = [write_users(place, {"ann": 0.2, "bob": 0.2}, shift) for shift in (0.0, 1.5) if (place := tmp_path / str(shift)).mkdir() is None]
    alike, apart = ([np.log(read_signal(open_session(p))[:, 1].std(0)) for p in paths] for paths in small)
    assert np.abs(alike[0] - alike[1]).max() < 0.5 * np.abs(apart[0] - apart[1]).max(), "people differ by the shift, not by chance"
    monkeypatch.setattr(corpora, "project_root", lambda: tmp_path)
    monkeypatch.setattr(corpora, "USERS_MINUTES", {"ann": 0.1})
    monkeypatch.setattr(corpora, "write_users", lambda folder: write_users(folder, {"ann": 0.1}))
    made = corpus_folder("users") / "ann.hdf5"
    first = made.stat().st_mtime_ns
    assert corpus_folder("users") and made.stat().st_mtime_ns == first
    monkeypatch.setattr(corpora, "USERS_SHIFT", 0.5)
    assert corpus_folder("users") and made.stat().st_mtime_ns != first, "another constant, another corpus"


@pytest.mark.parametrize("name, folder", [("emg2qwerty", "emg2qwerty-data-2021-08"), ("myo", "myo"), ("kao", "kao")])
def test_a_corpus_that_is_not_here_says_where_it_would_be(tmp_path, monkeypatch, name, folder):
    monkeypatch.setattr(corpora, "project_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=f"raw/{folder}: semgbook data fetch {name}"): corpus_folder(name)


@pytest.mark.parametrize("name", ["emg2qwerty-bids", "emg2qwerty-splits"])
def test_what_is_no_folder_of_sessions_says_so(name):
    with pytest.raises(CorpusError, match=f"corpus {name} is .* not session files"): corpus_folder(name)


def test_folders(tmp_path):
    assert corpus_folder(str(toy_corpus(tmp_path / "toy", n_sessions=1))) == tmp_path / "toy"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="convert"): corpus_folder(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="embedded"): corpus_folder("embeded")


def test_the_table_says_what_is_not_known(tmp_path):
    (tmp_path / "kao").mkdir()
    table = describe_corpora(tmp_path)
    assert list(table.index) == list(CORPORA) and table.map(lambda x: isinstance(x, str) and bool(x)).all(axis=None)
    assert table.checksum["emg2qwerty"] == "not published" and table.checksum["kao"] == "git" and table["size"]["emg2qwerty-splits"] == "not published"
    assert table.here["kao"] == "yes" and table.here["myo"] == "no" and table.single["emg2qwerty-bids"] == "users, sessions"


def test_downloaded_folders_become_sessions(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "project_root", lambda: tmp_path)
    for name, session in (("54321-1", 0), ("54321-2", 1)):
        folder = tmp_path / "data" / "raw" / "myo" / "_readings_right_hand" / name
        folder.mkdir(parents=True)
        rng = np.random.default_rng(session)
        for label in range(8):
            lines = [",".join(map(str, [*rng.integers(-20, 20, 8), label if i // 100 % 2 else 0])) for i in range(600)]
            (folder / f"{label}.txt").write_text("\n".join(lines) + "\n")
    sessions = open_corpus(corpus_folder("myo"))
    assert {s.user for s in sessions} == {"54321"} and len(sessions) == 2 and sessions[0].rate_hz == 200
    (tmp_path / "data" / "raw" / "kao").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no subject1\.csv"): corpus_folder("kao")


def test_a_file_is_known_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "renamed.bin"
    path.write_bytes(CONTENT)
    assert identify_file(path) is None
    source = CorpusSource("mine", "x", "MIT", lambda: None, "mine", (RemoteFile("a/b.csv", "https://x/", None, digest_of(path, "git")),))
    monkeypatch.setitem(CORPORA, "mine", source)
    assert identify_file(path) == "mine/a/b.csv"
    path.write_bytes(CONTENT[:-1])
    assert identify_file(path) is None


def test_published_kao_ids(shared):
    known = json.loads(shared("data/kao_events/kao_fingerprint.json").read_text())
    ours = {f.digest.split(":")[1] for f in CORPORA["kao"].files}
    assert ours <= set(re.findall(r"[0-9a-f]{40}", json.dumps(known)))


# ---- fetch

@pytest.fixture
def bids(serve, monkeypatch):
    server = serve(lambda h, n: bucket(h))
    monkeypatch.setitem(CORPORA, "bids", CorpusSource("bids", "x", "MIT", lambda: None, "nm", bucket=server.url, selectable=("users", "sessions")))
    return server


@pytest.mark.parametrize("wanted, expected", [
    ({}, sorted(OBJECTS)), ({"users": ["01"]}, [k for k in sorted(OBJECTS) if "sub-02" not in k]), ({"users": ["sub-02"]}, [k for k in sorted(OBJECTS) if "sub-01" not in k]),
    ({"sessions": ["01"]}, [k for k in sorted(OBJECTS) if "ses-02" not in k]),
    ({"users": ["01"], "sessions": ["ses-02"]}, ["nm/README", "nm/participants.tsv", "nm/sub-01/ses-02/emg/b c.bdf"])])
def test_users_and_sessions_of_a_bucket(bids, tmp_path, wanted, expected):
    folder = fetch("bids", tmp_path, **wanted, **FAST)
    assert folder == tmp_path / "nm"
    assert {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {k: OBJECTS[k] for k in expected}
    before = len(bids.asked)
    fetch("bids", tmp_path, **wanted, **FAST)
    assert all("list-type" in a.path for a in bids.asked[before:]), "what is here is not fetched again"


def test_what_the_bucket_does_not_have(bids, tmp_path):
    with pytest.raises(CorpusError, match="no user 07: nothing lies at"): fetch("bids", tmp_path, users=["07"], **FAST)
    with pytest.raises(CorpusError, match="no session ses-09"): fetch("bids", tmp_path, sessions=["09"], **FAST)
    (tmp_path / "nm").mkdir(exist_ok=True)
    (tmp_path / "nm" / "README").write_text("mine")
    with pytest.raises(CorpusError, match="README: is not the published file .*move it away"): fetch("bids", tmp_path, **FAST)
    assert (tmp_path / "nm" / "README").read_text() == "mine"


def test_an_archive_is_fetched_resumed_and_unpacked(serve, tmp_path, monkeypatch):
    packed = tar_bytes(("top/a.hdf5", CONTENT), ("top/metadata.csv", b"user"))
    server = serve(lambda h, n: answer(h, packed, cut=150_000))
    monkeypatch.setitem(CORPORA, "one", CorpusSource("one", "x", "MIT", lambda: None, "data", (RemoteFile("one.tar.gz", server.url + "/one.tar.gz"),), archive=True))
    folder = fetch("one", tmp_path, **FAST)
    assert folder == tmp_path / "data" and names(folder) == ["a.hdf5", "metadata.csv"] and names(tmp_path) == ["data", "one.tar.gz", "one.tar.gz.sha256"]
    n = len(server.asked)
    assert fetch("one", tmp_path, **FAST) == folder and len(server.asked) == n
    with pytest.raises(CorpusError, match="single users cannot be fetched, it is one archive"): fetch("one", tmp_path, users=["a"], **FAST)


def test_a_file_a_user_brought_is_checked(serve, tmp_path, monkeypatch):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x").write_bytes(CONTENT)
    files = tuple(RemoteFile(f"{n}.csv", server.url, None, digest_of(tmp_path / "x", "git")) for n in ("ada", "bob"))
    monkeypatch.setitem(CORPORA, "two", CorpusSource("two", "x", "MIT", lambda: None, "two", files, selectable=("users",)))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "ada.csv").write_bytes(CONTENT)
    assert names(fetch("two", tmp_path, users=["ada"], **FAST)) == ["ada.csv"] and not server.asked
    assert names(fetch("two", tmp_path, **FAST)) == ["ada.csv", "bob.csv"] and len(server.asked) == 1
    (tmp_path / "two" / "ada.csv").write_bytes(CONTENT[:-1])
    with pytest.raises(CorpusError, match="ada.csv: is not the published file"): fetch("two", tmp_path, **FAST)


def test_requests_that_cannot_be_met(tmp_path):
    for asked, message in ((dict(name="emg2qwerty", users=["1"]), "one archive; corpus emg2qwerty-bids can"), (dict(name="myo", sessions=["1"]), "one archive. Leave sessions out"),
                           (dict(name="kao", users=["x"]), "no user x; it has subject1, subject2"), (dict(name="emg2qwerty-splits", users=["x"]), "not kept apart"), (dict(name="nope"), "known are embedded")):
        with pytest.raises(CorpusError, match=message): fetch(root=tmp_path, **asked)
    assert names(tmp_path) == []


def test_a_corpus_that_the_disk_cannot_hold_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    with pytest.raises(DownloadError, match="corpus emg2qwerty needs 308.38 GB"): fetch("emg2qwerty", tmp_path)


# ---- metadata

HEADER = "user,session,duration_mins,num_keystrokes,num_prompts,quality_check_tags"


@pytest.mark.parametrize("text, items", [("[]", ()), ("", ()), ("null", ()), ("['a']", ("a",)), ("[high-backspaces, b c]", ("high-backspaces", "b c")), ('["a, b", \'it\'\'s\']', ("a, b", "it's")),
                                         ("- a\n- 'b'\n", ("a", "b")), (r'["\u00e9"]', ("é",))])
def test_yaml_lists(text, items): assert yaml_list(text) == items


@pytest.mark.parametrize("text", ["a", "{a: b}", "[[a]]", "[a", "['a]", "- a\nb", "['a' 'b']", "[&x a]", "- a, b"])
def test_what_is_no_yaml_list(text):
    with pytest.raises(ValueError): yaml_list(text)


def test_metadata(tmp_path):
    (tmp_path / "metadata.csv").write_text(f"{HEADER},extra\n007,s-1,1.5,10,2,[],x\n7,s-2,2,11,0,\"['a', b]\",\n\n", encoding="utf-8-sig")
    table = read_metadata(tmp_path)
    assert table.columns.tolist() == [*HEADER.split(","), "extra"] and table.user.tolist() == ["007", "7"] and table.quality_check_tags.tolist() == [(), ("a", "b")]
    assert table.duration_mins.tolist() == [1.5, 2.0] and table.num_keystrokes.sum() == 21 and table.num_keystrokes.dtype.kind == "i"


@pytest.mark.parametrize("text, message", [
    ("user,session\n1,a\n", "has no column duration_mins, only user, session"), (f"{HEADER}\n1,a,1,1,1,[]\n2,a,1,1,1,[]\n", "session a is listed twice"), (f"{HEADER}\n1,a,x,1,1,[]\n", "row 1, column duration_mins"),
    (f"{HEADER}\n1,a,1,1,1,[\n", "row 1, column quality_check_tags"), (f"{HEADER}\n1,a\n", "row 1 has 2 fields, the header 6"), ("", "cannot be read"), (f'{HEADER}\n1,"a', "cannot be read")])
def test_metadata_that_is_refused(tmp_path, text, message):
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(CorpusError, match=message): read_metadata(tmp_path)
    toy_corpus(tmp_path, n_sessions=1)
    table = check_corpus(tmp_path)
    assert table.file.tolist() == ["metadata.csv", "toy-0.hdf5"] and table.usable.tolist() == [False, True] and re.search(message, table.problems[0])


def test_no_metadata(tmp_path):
    with pytest.raises(CorpusError, match="no such file"): read_metadata(tmp_path)


# ---- the check

def write(path, late=0.0, n=4000, keys="abcdefgh", user="ada", **more):
    press = 1.6e9 + np.linspace(0.1, n / 500 - 0.1, len(keys)) + late
    return write_session(path, np.zeros((n, 2, 4)) + 1, 1.6e9 + np.arange(n) / 500, list(keys), press, press + 0.1, name=more.pop("name", path.stem), user=user, rate_hz=more.pop("rate_hz", 500.0), **more)


def edited(path, change):
    with h5py.File(path, "r+") as f: change(f[GROUP])
    return path


def log_of(group): return json.loads(group.attrs["keystrokes"])


def put(group, log): group.attrs["keystrokes"] = json.dumps(log)


PROBLEMS = {
    "good": (lambda p: write(p), True, "^$"),
    "ran on": (lambda p: write(p, late=2.0), True, "^keystrokes after the last sample: 2$"),
    "ran ahead": (lambda p: write(p, late=-2.0), True, "^keystrokes before the first sample: 2$"),
    "another clock": (lambda p: write(p, late=3600.0), True, "no keystroke lies inside the signal"),
    "no keystrokes": (lambda p: write(p, keys=""), True, "^no keystrokes$"),
    "tags": (lambda p: write(p, quality_tags=["high-backspaces"]), True, "quality warnings: high-backspaces"),
    "wrong rate": (lambda p: write(p, rate_hz=2000.0), True, r"clock runs at 500\.0 Hz, the header says 2000\.0 Hz"),
    "no prompts": (lambda p: edited(write(p), lambda g: g.attrs.pop("prompts")), True, "the header has no prompts"),
    "no user": (lambda p: edited(write(p), lambda g: g.attrs.pop("user")), False, "attribute user is missing"),
    "no key": (lambda p: edited(write(p), lambda g: put(g, [*log_of(g)[:2], {"start": 1.6e9 + 7}])), False, r"keystrokes\[2\] has key None, not a key name; repair"),
    "no time": (lambda p: edited(write(p), lambda g: put(g, [*log_of(g)[:2], {"key": "a"}])), False, r"keystrokes\[2\] has start None, not a time"),
    "unsorted": (lambda p: edited(write(p), lambda g: put(g, log_of(g)[::-1])), False, r"keystrokes\[1\] has an earlier start .*sort"),
    "milliseconds": (lambda p: edited(write(p), lambda g: put(g, [{"key": "a", "start": s["start"] * 1000} for s in log_of(g)])), False, "are the times in milliseconds"),
    "cut": (lambda p: write(p).write_bytes(write(p).read_bytes()[:9000]), False, "truncated"),
    "text": (lambda p: p.write_text("user,session"), False, "cannot be read as HDF5"),
    "foreign": (lambda p: h5py.File(p, "w").create_dataset("x", data=[1]).file.close(), False, "is it an emg2qwerty session"),
    "early release": (lambda p: edited(write(p), lambda g: put(g, [s | {"end": s["start"] - 1} for s in log_of(g)])), True, "releases before their press: 8"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_each_problem_is_a_row(tmp_path, case):
    make, usable, message = PROBLEMS[case]
    write(tmp_path / "other.hdf5")
    make(tmp_path / "s.hdf5")
    table = check_corpus(tmp_path).set_index("file")
    assert table.index.tolist() == ["other.hdf5", "s.hdf5"] and not table.problems["other.hdf5"]
    assert table.usable["s.hdf5"] == usable and re.search(message, table.problems["s.hdf5"]), table.problems["s.hdf5"]
    assert str(tmp_path) not in table.problems["s.hdf5"]
    if case == "ran on": assert table.first_press_s["s.hdf5"] == pytest.approx(2.1, abs=1e-3) and table.last_press_s["s.hdf5"] == pytest.approx(1.9, abs=3e-3)
    lines = check_lines(table.reset_index())
    assert len(lines) == 1 + bool(table.problems["s.hdf5"]) and lines[-1].startswith(f"2 sessions, {int(not usable)} refused")


def test_the_signal_is_read_only_when_asked(tmp_path):
    path = write(tmp_path / "s.hdf5")
    edited(path, lambda g: g[DATASET].__setitem__(7, (np.full(4, np.nan), 1.6e9 + 7 / 500, np.zeros(4))))
    told = []
    assert check_corpus(tmp_path, progress=lambda *a: told.append(a)).usable.all() and told == [("s.hdf5", 1, 1)]
    table = check_corpus(tmp_path, check_signal=True)
    assert not table.usable[0] and "emg_right is nan at sample 7" in table.problems[0]


def test_copies_and_the_list(tmp_path):
    write(tmp_path / "a.hdf5")
    write(tmp_path / "b.hdf5", name="a")
    write(tmp_path / "c.hdf5", user="bob")
    write(tmp_path / "d.hdf5")
    (tmp_path / "metadata.csv").write_text(f"{HEADER}\nada,a,0.1333,8,0,[]\nada,b,3,8,0,[]\nada,c,0.1333,9,0,[]\neve,gone,1,1,0,[]\neve,lost,1,1,0,[]\n")
    table = check_corpus(tmp_path).set_index("file")
    assert table.usable.to_dict() == {"a.hdf5": True, "b.hdf5": False, "c.hdf5": True, "d.hdf5": True, "gone.hdf5": False, "lost.hdf5": False}
    assert table.problems["a.hdf5"] == "" and table.problems["d.hdf5"] == "not listed in metadata.csv" and table.problems["gone.hdf5"] == "listed in metadata.csv, not in the folder"
    assert table.problems["b.hdf5"] == "session_name 'a' as in a.hdf5; remove the copy; metadata.csv says 3.00 minutes, the file has 0.13"
    assert table.problems["c.hdf5"] == "metadata.csv says user ada, the file bob; metadata.csv says 9 keystrokes, the file has 8"
    assert "metadata.csv lists 2 sessions that are not in the folder: gone.hdf5, lost.hdf5" in check_lines(table.reset_index())[-2]
    with pytest.warns(UserWarning, match="b.hdf5"): assert len(open_corpus(tmp_path, skip_bad=True)) == 3, "a list that disagrees is no reason not to open"


def test_an_empty_folder(tmp_path):
    assert len(check_corpus(tmp_path)) == 0 and check_lines(check_corpus(tmp_path)) == ["0 sessions, 0 refused; usable: 0 users, 0.00 hours, 0 keystrokes, 0 of them labels"]


def test_real_headers_in_the_check(shared, tmp_path):
    "Two real key logs with noise as EMG: every keystroke is a label; what the second header lacks is a remark."
    for path in shared("data/emg2qwerty_sessions").glob("*.json"):
        record = json.loads(path.read_text())
        start, n = record["keystrokes"][0]["start"] - 1, record.get("num_samples", 20_000)
        data = np.zeros(n, row_dtype(16))
        data["time"] = start + np.arange(n) / 2000
        data["emg_left"][:, 0] = np.random.default_rng(0).normal(size=n)
        with h5py.File(tmp_path / f"{path.stem}.hdf5", "w") as f:
            f.create_group(GROUP).create_dataset(DATASET, data=data)
            for key, value in record.items():
                if key in ("num_samples", "source", "note") or value is None: continue
                f[GROUP].attrs[key] = json.dumps(value) if key in ("keystrokes", "prompts") else np.array(value, float) if key == "quality_check_tags" else value
    table = check_corpus(tmp_path)
    assert table.keystrokes.tolist() == table.labels.tolist() == [4569, 4432] and table.usable.all() and set(table.user) == {"89335547"}
    assert "the header has no prompts, quality_check_tags, daq_sample_rate, daq_channels, duration_mins" in table.problems[0] and "keystrokes after the last sample" in table.problems[0]
    assert table.problems[1] == "" and table.samples[1] == 1_790_654 and table.minutes[1] == pytest.approx(14.92, abs=0.01)


def test_what_recordings_are_is_said_by_a_person_the_corpus_its_sessions_or_nobody(tmp_path):
    def folder(name, **attributes):
        (tmp_path / name).mkdir()
        return str(write(tmp_path / name / "a.hdf5", attributes=attributes).parent)
    made, joined, unknown = folder("made", simulated="{}"), folder("joined", composed="{}"), folder("unknown")
    assert [what_recordings(f) for f in (made, joined, unknown)] == ["simulated", "semi-real", "unstated"]
    assert what_recordings(unknown, "real") == "real" and what_recordings("users") == what_recordings("embedded") == "simulated"
    (tmp_path / "unknown" / RECORDINGS).write_text("real, at a desk\nmore about it\n")
    assert what_recordings(unknown) == "real, at a desk" and what_recordings(unknown, "semi-real") == "semi-real"
    write(tmp_path / "made" / "b.hdf5", attributes={"composed": "{}"})
    assert what_recordings(made) == "semi-real and simulated"
    with pytest.raises(FileNotFoundError, match="neither"): what_recordings("embeded")
