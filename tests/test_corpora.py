"Corpora: every name answers with sessions or says where they would have to be; downloads from servers that lie, cut and stall; hostile archives; the check."
import gzip
import hashlib
import io
import json
import os
import re
import signal as signals
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from semgbook import corpora
from semgbook.corpora import (CORPORA, RECORDINGS, CorpusError, CorpusFile, CorpusSource, check_corpus, check_lines, corpus_folder, describe_corpora, digest_of, download,
                              fetch, identify_file, list_bucket, progress_line, read_metadata, safe_path, unpack_safely, what_recordings, write_users, yaml_list)
from semgbook.session import DATASET, GROUP, list_sessions, open_corpus, open_session, read_signal, row_dtype, write_session
from semgbook.splits import make_split
from toys import toy_corpus

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
FAST = dict(pause_s=0.001, timeout=5.0)


# ---- the registry

@pytest.mark.parametrize("name", CORPORA)
def test_every_corpus_is_described(name):
    source = CORPORA[name]
    assert source.name == name and source.what and source.licence
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


# ---- names for bytes

def test_digests_are_those_of_the_tools(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert digest_of(path) == SHA and digest_of(path, "md5") == f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    git = subprocess.run(["git", "hash-object", "--no-filters", path], capture_output=True, text=True)
    assert git.returncode or digest_of(path, "git") == f"git:{git.stdout.strip()}"
    path.write_bytes(b"")
    assert digest_of(path, "git") == "git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_a_file_is_known_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "renamed.bin"
    path.write_bytes(CONTENT)
    assert identify_file(path) is None
    source = CorpusSource("mine", "x", "MIT", lambda: None, "mine", (CorpusFile("a/b.csv", "https://x/", None, digest_of(path, "git")),))
    monkeypatch.setitem(CORPORA, "mine", source)
    assert identify_file(path) == "mine/a/b.csv"
    path.write_bytes(CONTENT[:-1])
    assert identify_file(path) is None


def test_published_kao_ids(shared):
    known = json.loads(shared("data/kao_events/kao_fingerprint.json").read_text())
    ours = {f.digest.split(":")[1] for f in CORPORA["kao"].files}
    assert ours <= set(re.findall(r"[0-9a-f]{40}", json.dumps(known)))


# ---- a server with faults

class Server:
    "Answers with what `behave(handler, number of this request)` does; keeps what was asked."
    def __init__(self, behave):
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(SimpleNamespace(path=self.path, range=self.headers["Range"], if_range=self.headers["If-Range"]))
                try: behave(self, len(asked))
                except (BrokenPipeError, ConnectionResetError): pass
            def log_message(self, *words): pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    "A function that starts a server; all are stopped at the end."
    started = []
    def start(behave):
        started.append(Server(behave))
        return started[-1]
    yield start
    for server in started: server.close()


def answer(handler, data=CONTENT, cut=None, etag='"one"', ranges=True, length=None, modified=None, content_range=None):
    "A well-behaved answer, apart from what is asked for: cut is the number of bytes sent, length a lie about them."
    start = int(handler.headers["Range"][6:-1]) if handler.headers["Range"] and ranges else 0
    if handler.headers["If-Range"] not in (None, etag, modified): start = 0
    if start and start >= len(data):
        handler.send_response(416)
        handler.send_header("Content-Range", f"bytes */{len(data)}")
        handler.send_header("Content-Length", "0")
        return handler.end_headers()
    handler.send_response(206 if start else 200)
    if etag: handler.send_header("ETag", etag)
    if modified: handler.send_header("Last-Modified", modified)
    if start: handler.send_header("Content-Range", content_range or f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str((length or len(data)) - start))
    handler.end_headers()
    handler.wfile.write(data[start:] if cut is None else data[start:start + cut])


def refuse(handler, code, **headers):
    handler.send_response(code)
    for name, value in headers.items(): handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def names(folder): return sorted(p.name for p in folder.iterdir())


def test_a_plain_download(serve, tmp_path):
    server, told = serve(lambda h, n: answer(h)), []
    path = download(CorpusFile("", server.url + "/x", len(CONTENT), SHA), tmp_path / "deep" / "x.bin", lambda *a: told.append(a), **FAST)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["x.bin"] and len(server.asked) == 1
    assert told[-1] == ("x.bin", len(CONTENT), len(CONTENT)) and [t[1] for t in told] == sorted(t[1] for t in told)


def test_cut_often_and_resumed(serve, tmp_path):
    "More cuts than tries: only tries in a row without progress count; no byte is sent twice."
    server = serve(lambda h, n: answer(h, cut=20_000))
    download(CorpusFile("", server.url, None, SHA), tmp_path / "x", tries=2, **FAST)
    assert (tmp_path / "x").read_bytes() == CONTENT and len(server.asked) == 15
    assert [a.range for a in server.asked[1:]] == [f"bytes={20_000 * i}-" for i in range(1, 15)] and {a.if_range for a in server.asked[1:]} == {'"one"'}


def test_resumed_by_a_later_call(serve, tmp_path):
    server = serve(lambda h, n: answer(h, cut=100_000) if n == 1 else refuse(h, 503) if n < 4 else answer(h))
    with pytest.raises(CorpusError, match=r"3 tries in a row .*503.* 100,000 bytes are kept in x\.part, fetch again"):
        download(CorpusFile("", server.url, None, SHA), tmp_path / "x", tries=3, **FAST)
    assert names(tmp_path) == ["x.part", "x.part.json"] and len(server.asked) == 3
    server.asked.append(None)  # the next one is the fifth
    download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST)
    assert server.asked[-1].range == "bytes=100000-" and (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]


def test_a_server_that_ignores_ranges(serve, tmp_path):
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, ranges=False))
    assert download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert server.asked[1].range == "bytes=100000-"


def test_a_server_that_answers_another_range(serve, tmp_path):
    "206 that begins elsewhere: everything is asked for again."
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, content_range="bytes 5-9/10"))
    assert download(CorpusFile("", server.url), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == [None, "bytes=100000-", None]


@pytest.mark.parametrize("mark", ["etag", "modified"])
def test_a_file_that_changed_in_between_is_begun_again(serve, tmp_path, mark):
    new = CONTENT[::-1]
    marks = [{"etag": '"one"'}, {"etag": '"two"'}] if mark == "etag" else [{"etag": None, "modified": f"Sat, {d} Aug 2026 10:00:00 GMT"} for d in (1, 8)]
    server = serve(lambda h, n: answer(h, cut=100_000, **marks[0]) if n == 1 else answer(h, new, **marks[1]))
    assert download(CorpusFile("", server.url), tmp_path / "x", **FAST).read_bytes() == new
    assert server.asked[1].if_range == next(filter(None, marks[0].values()))


def test_a_changed_file_from_a_server_that_ignores_if_range(serve, tmp_path):
    "The 206 carries another mark: it is not joined to the old part."
    def behave(h, n):
        if n == 1: return answer(h, cut=100_000)
        if h.headers["If-Range"]: h.headers.replace_header("If-Range", '"two"')
        answer(h, CONTENT[::-1], etag='"two"')
    assert download(CorpusFile("", serve(behave).url), tmp_path / "x", **FAST).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
@pytest.mark.parametrize("digest", [None, SHA])
def test_without_a_mark_only_a_checksum_allows_to_go_on(serve, tmp_path, etag, digest):
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, etag=etag))
    assert download(CorpusFile("", server.url, None, digest), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == [None, "bytes=100000-" if digest else None]


def test_a_part_that_was_complete_when_the_process_was_killed(serve, tmp_path):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x.part").write_bytes(CONTENT)
    (tmp_path / "x.part.json").write_text(json.dumps({"url": server.url, "version": '"one"'}))
    assert download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == ["bytes=300000-"]


@pytest.mark.parametrize("junk, url", [(b"x" * 400_000, ""), (b"x" * 1000, "http://other/")])
def test_a_part_of_something_else_is_thrown_away(serve, tmp_path, junk, url):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x.part").write_bytes(junk)
    (tmp_path / "x.part.json").write_text(json.dumps({"url": url or server.url, "version": '"one"'}))
    assert download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT


def test_announced_too_long(serve, tmp_path):
    "The line ends early each time; where ranges work, the server itself says in the end that there is no more."
    server = serve(lambda h, n: answer(h, length=400_000))
    assert download(CorpusFile("", server.url), tmp_path / "x", **FAST).read_bytes() == CONTENT and len(server.asked) == 2
    server = serve(lambda h, n: answer(h, length=400_000, ranges=False))
    with pytest.raises(CorpusError, match="3 tries in a row .*300,000 of 400,000 bytes"): download(CorpusFile("", server.url), tmp_path / "y", tries=3, **FAST)
    assert not (tmp_path / "y").exists()


def test_announced_too_short(serve, tmp_path):
    server = serve(lambda h, n: answer(h, length=200_000))
    with pytest.raises(CorpusError, match="has 200,000 bytes, but 300,000 are published"): download(CorpusFile("", server.url, 300_000), tmp_path / "x", **FAST)
    with pytest.raises(CorpusError, match="the download has sha256:.*set aside as x.rejected"): download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST)
    assert "x" not in names(tmp_path)


def test_no_length_at_all(serve, tmp_path):
    def behave(h, n):
        h.send_response(200)
        h.end_headers()
        h.wfile.write(CONTENT)
    assert download(CorpusFile("", serve(behave).url, 300_000, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    with pytest.raises(CorpusError, match="has 300,000 bytes, published are 300,001"): download(CorpusFile("", serve(behave).url, 300_001), tmp_path / "y", **FAST)


@pytest.mark.parametrize("kind", ["sha256", "md5", "git"])
def test_corrupt_bytes(serve, tmp_path, kind):
    (tmp_path / "true").write_bytes(CONTENT)
    digest = digest_of(tmp_path / "true", kind)
    spoiled = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
    server = serve(lambda h, n: answer(h, spoiled if n == 1 else CONTENT))
    file = CorpusFile("", server.url, 300_000, digest)
    with pytest.raises(CorpusError, match=f"x: the download has {kind}:.*published is {digest}; fetch again"): download(file, tmp_path / "x", **FAST)
    assert names(tmp_path) == ["true", "x.rejected"] and (tmp_path / "x.rejected").read_bytes() == spoiled
    assert download(file, tmp_path / "x", **FAST).read_bytes() == CONTENT


def test_trust_on_first_use(serve, tmp_path):
    server = serve(lambda h, n: answer(h, CONTENT if n < 3 else b"other"))
    file = CorpusFile("", server.url)
    download(file, tmp_path / "x", **FAST)
    assert (tmp_path / "x.sha256").read_text() == f"{SHA[7:]}  x\n"
    (tmp_path / "x").unlink()
    download(file, tmp_path / "x", **FAST).unlink()
    with pytest.raises(CorpusError, match=r"recorded at the first download is .* delete x\.sha256"): download(file, tmp_path / "x", **FAST)
    (tmp_path / "x.sha256").unlink()
    assert download(file, tmp_path / "x", **FAST).read_bytes() == b"other"


def test_redirects(serve, tmp_path):
    other = serve(lambda h, n: answer(h))
    server = serve(lambda h, n: refuse(h, 302, Location=other.url + "/moved"))
    assert download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    loop = serve(lambda h, n: refuse(h, 302, Location="/again"))
    with pytest.raises(CorpusError, match="answers 302 .*infinite loop"): download(CorpusFile("", loop.url), tmp_path / "y", **FAST)
    assert len(loop.asked) < 20
    (tmp_path / "secret").write_text("secret")
    for bad in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "data:,x"):
        server = serve(lambda h, n, bad=bad: refuse(h, 302, Location=bad))
        with pytest.raises(CorpusError, match="not (followed|allowed)"): download(CorpusFile("", server.url), tmp_path / "z", **FAST)
        assert len(server.asked) == 1 and not (tmp_path / "z").exists()


def test_no_way_down_from_https():
    request = urllib.request.Request("https://a.example/x")
    handler = corpora._Redirects()
    with pytest.raises(CorpusError, match="from https to http is not followed"): handler.redirect_request(request, None, 302, "", {}, "http://a.example/x")
    assert handler.redirect_request(request, None, 302, "", {}, "https://b.example/x").full_url == "https://b.example/x"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "data:,x"])
def test_only_the_web_is_fetched(tmp_path, url):
    with pytest.raises(CorpusError, match="only http and https"): download(CorpusFile("", url), tmp_path / "x", **FAST)


def test_not_there_is_not_tried_again(serve, tmp_path):
    for code in (403, 404, 410):
        server = serve(lambda h, n, code=code: refuse(h, code))
        with pytest.raises(CorpusError, match=f"answers {code} .*check the address"): download(CorpusFile("", server.url), tmp_path / "x", **FAST)
        assert len(server.asked) == 1 and names(tmp_path) == []


def test_busy_is_tried_again_after_a_pause(serve, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(corpora.time, "sleep", pauses.append)
    server = serve(lambda h, n: refuse(h, 503) if n < 3 else refuse(h, 429, Retry_After="7") if n == 3 else refuse(h, 500, Retry_After="9999") if n == 4 else answer(h))
    download(CorpusFile("", server.url, None, SHA), tmp_path / "x", pause_s=1.0)
    assert pauses == [1.0, 2.0, 7.0, 60.0]


def test_silence_is_a_cut(serve, tmp_path):
    stop = threading.Event()
    def behave(h, n):
        if n == 1:
            answer(h, cut=100_000)
            h.wfile.flush()
            stop.wait(5)
        else: answer(h)
    began = time.monotonic()
    download(CorpusFile("", serve(behave).url, None, SHA), tmp_path / "x", pause_s=0.001, timeout=0.3)
    stop.set()
    assert (tmp_path / "x").read_bytes() == CONTENT and time.monotonic() - began < 4
    with pytest.raises(CorpusError, match="2 tries in a row brought nothing new"):
        download(CorpusFile("", serve(lambda h, n: time.sleep(1)).url), tmp_path / "y", tries=2, pause_s=0.001, timeout=0.2)


def test_nobody_listens(tmp_path):
    server = Server(lambda h, n: None)
    server.close()
    with pytest.raises(CorpusError, match="2 tries in a row .*refused"): download(CorpusFile("", server.url), tmp_path / "x", tries=2, **FAST)


def test_an_encoded_answer_is_refused(serve, tmp_path):
    server = serve(lambda h, n: refuse(h, 200, Content_Encoding="gzip"))
    with pytest.raises(CorpusError, match="gzip-encoded"): download(CorpusFile("", server.url), tmp_path / "x", **FAST)


def test_a_disk_that_is_too_small_is_noticed_before(serve, tmp_path, monkeypatch):
    server = serve(lambda h, n: answer(h))
    monkeypatch.setattr(corpora.shutil, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    with pytest.raises(CorpusError, match=r"x needs 0\.00 GB.*free some space"): download(CorpusFile("", server.url), tmp_path / "x", **FAST)
    assert names(tmp_path) == []
    with pytest.raises(CorpusError, match="corpus emg2qwerty needs 308.38 GB"): fetch("emg2qwerty", tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_disk_that_runs_full_is_named(serve, tmp_path):
    os.symlink("/dev/full", tmp_path / "x.part")
    with pytest.raises(CorpusError, match=r"x\.part: cannot be written .*No space left.*free some space"): download(CorpusFile("", serve(lambda h, n: answer(h)).url), tmp_path / "x", **FAST)


def test_two_at_once(serve, tmp_path):
    pytest.importorskip("fcntl")
    go, begun = threading.Event(), threading.Event()
    def behave(h, n):
        begun.set()
        go.wait(5)
        answer(h)
    file = CorpusFile("", serve(behave).url, None, SHA)
    first = threading.Thread(target=download, args=(file, tmp_path / "x"))
    first.start()
    begun.wait(5)
    try:
        with pytest.raises(CorpusError, match="another process is fetching"): download(file, tmp_path / "x", **FAST)
    finally: go.set()
    first.join()
    assert (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]


def test_a_killed_download_goes_on(serve, tmp_path):
    "A process is killed in the middle; the next one asks for the rest, and no lock is left."
    stop = threading.Event()
    def behave(h, n):
        if n == 1:
            answer(h, cut=262_144)
            h.wfile.flush()
            stop.wait(20)
        else: answer(h)
    server = serve(behave)
    code = "import sys\nfrom semgbook.corpora import CorpusFile, download\ndownload(CorpusFile('', sys.argv[1]), sys.argv[2], lambda *a: print('*', flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path / "x")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"*\n"
    process.send_signal(signals.SIGKILL)
    process.wait()
    stop.set()
    kept = (tmp_path / "x.part").stat().st_size
    download(CorpusFile("", server.url, None, SHA), tmp_path / "x", **FAST)
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked[1].range == (f"bytes={kept}-" if kept else None)


def test_the_progress_line():
    out = io.StringIO()
    show = progress_line(out, every_s=0)
    for done in (0, 500_000, 1_000_000): show("x", done, 1_000_000)
    show("y", 5, None)
    assert out.getvalue().count("\r") == 4 and "50%" in out.getvalue() and out.getvalue().count("\n") == 1 and "100%" in out.getvalue()
    out = io.StringIO()
    show = progress_line(out, every_s=60)
    for done in range(100): show("x", done, 100)
    assert out.getvalue().count("\r") == 1


# ---- a bucket

OBJECTS = {"nm/README": b"read", "nm/participants.tsv": b"id", "nm/sub-01/ses-01/emg/a.bdf": b"aaa", "nm/sub-01/ses-02/emg/b c.bdf": b"bb", "nm/sub-02/ses-01/emg/d.bdf": b"d",
           "nm/sub-02/x.json": b"{}"}


def bucket(handler, objects=OBJECTS, page=2, etags=True):
    "S3 as far as it is used: keys by prefix and delimiter, a page at a time; and the objects."
    path, _, query = handler.path.partition("?")
    if not query: return answer(handler, objects[urllib.request.unquote(path[1:])], etag=None)
    asked = dict(urllib.parse.parse_qsl(query))
    keys = [k for k in sorted(objects) if k.startswith(asked["prefix"]) and ("delimiter" not in asked or "/" not in k[len(asked["prefix"]):])]
    start = int(asked.get("continuation-token", 0))
    rows = "".join(f"<Contents><Key>{k}</Key><Size>{len(objects[k])}</Size><ETag>&quot;{hashlib.md5(objects[k]).hexdigest()}{'' if etags else '-2'}&quot;</ETag></Contents>" for k in keys[start:start + page])
    more = start + page < len(keys)
    text = (f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>{str(more).lower()}</IsTruncated>'
            f"{f'<NextContinuationToken>{start + page}</NextContinuationToken>' if more else ''}{rows}</ListBucketResult>")
    answer(handler, text.encode(), etag=None)


def test_listing(serve):
    server = serve(lambda h, n: bucket(h))
    files = list_bucket(server.url, "nm/")
    assert [f.path for f in files] == [k[3:] for k in sorted(OBJECTS)] and len(server.asked) == 3
    assert [f.size for f in files] == [len(OBJECTS[k]) for k in sorted(OBJECTS)]
    assert all(f.digest == f"md5:{hashlib.md5(OBJECTS['nm/' + f.path]).hexdigest()}" for f in files)
    assert [f.path for f in list_bucket(server.url, "nm/", below=False)] == ["README", "participants.tsv"]
    assert {f.digest for f in list_bucket(serve(lambda h, n: bucket(h, etags=False)).url, "nm/")} == {None}, "the mark of a file that came in pieces is no checksum"


@pytest.mark.parametrize("text, message", [
    (b"<html>no", "listing cannot be read"), (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "declares entities"),
    (b'<!DOCTYPE x SYSTEM "file:///etc/hostname"><x/>', "declares entities"),
    (b"<x><Contents><Key>nm/../../x</Key><Size>1</Size></Contents></x>", "written outside its folder"), (b"<x><IsTruncated>true</IsTruncated></x>", "does not end")])
def test_a_hostile_listing(serve, text, message):
    with pytest.raises(CorpusError, match=message): list_bucket(serve(lambda h, n: answer(h, text)).url, "nm/")


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


# ---- fetch

def tar_bytes(*members, compress=True):
    "A tar(.gz) of (name, content) or TarInfo objects."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if compress else "w") as tar:
        for m in members:
            if isinstance(m, tarfile.TarInfo): tar.addfile(m)
            else:
                info = tarfile.TarInfo(m[0])
                info.size = len(m[1])
                tar.addfile(info, io.BytesIO(m[1]))
    return out.getvalue()


def test_an_archive_is_fetched_resumed_and_unpacked(serve, tmp_path, monkeypatch):
    packed = tar_bytes(("top/a.hdf5", CONTENT), ("top/metadata.csv", b"user"))
    server = serve(lambda h, n: answer(h, packed, cut=150_000))
    monkeypatch.setitem(CORPORA, "one", CorpusSource("one", "x", "MIT", lambda: None, "data", (CorpusFile("one.tar.gz", server.url + "/one.tar.gz"),), archive=True))
    folder = fetch("one", tmp_path, **FAST)
    assert folder == tmp_path / "data" and names(folder) == ["a.hdf5", "metadata.csv"] and names(tmp_path) == ["data", "one.tar.gz", "one.tar.gz.sha256"]
    n = len(server.asked)
    assert fetch("one", tmp_path, **FAST) == folder and len(server.asked) == n
    with pytest.raises(CorpusError, match="single users cannot be fetched, it is one archive"): fetch("one", tmp_path, users=["a"], **FAST)


def test_a_file_a_user_brought_is_checked(serve, tmp_path, monkeypatch):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x").write_bytes(CONTENT)
    files = tuple(CorpusFile(f"{n}.csv", server.url, None, digest_of(tmp_path / "x", "git")) for n in ("ada", "bob"))
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


# ---- archives

def info(name, kind, link="", size=0):
    m = tarfile.TarInfo(name)
    m.type, m.linkname, m.size = kind, link, size
    return m


BAD_TARS = {
    "climbing": ([("a/../../x", b"x")], "outside its folder"), "dots": ([("..", b"x")], "outside its folder"),
    "drive": ([("C:/x", b"x")], "outside its folder"), "backslash": ([("..\\x", b"x")], "outside its folder"), "newline": ([("a\nb", b"x")], "outside its folder"),
    "symlink": ([info("a", tarfile.SYMTYPE, "/etc")], "is a link"), "symlink inside": ([("b", b"x"), info("a", tarfile.SYMTYPE, "b")], "is a link"),
    "hard link": ([info("a", tarfile.LNKTYPE, "../../x")], "is a link"), "fifo": ([info("a", tarfile.FIFOTYPE)], "is a device"), "disk": ([info("a", tarfile.BLKTYPE)], "is a device"),
    "twice": ([("a", b"x"), ("a", b"y")], "comes twice"), "case": ([("a/b", b"x"), ("A/B", b"y")], "comes twice"), "below a file": ([("a", b"x"), ("a/b", b"y")], "comes twice"),
    "file then folder": ([("a", b"x"), info("a", tarfile.DIRTYPE)], "comes twice"), "folder then file": ([info("a", tarfile.DIRTYPE), ("a", b"x")], "comes twice"),
    "swelling": ([("a", bytes(2**26))], "unpacks to more than"), "empty": ([], "is empty"),
}


@pytest.mark.parametrize("case", BAD_TARS)
def test_hostile_tars(tmp_path, case):
    members, message = BAD_TARS[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.tar.gz").write_bytes(tar_bytes(("ok/before", b"fine"), *members) if members else tar_bytes())
    with pytest.raises(CorpusError, match=message) as caught: unpack_safely(tmp_path / "in" / "x.tar.gz", tmp_path / "in" / "out")
    assert "x.tar.gz" in str(caught.value) and names(tmp_path / "in") == ["x.tar.gz"] and names(tmp_path) == ["in"]


def test_an_absolute_name(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(tar_bytes((f"{tmp_path}/evil", b"x")))
    with pytest.raises(CorpusError, match="outside its folder"): unpack_safely(tmp_path / "x.tar.gz", tmp_path / "out")
    assert names(tmp_path) == ["x.tar.gz"]


def zip_bytes(*members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data, *mode in members:
            m = zipfile.ZipInfo(name)
            m.external_attr, m.compress_type = (mode[0] << 16 if mode else 0), zipfile.ZIP_DEFLATED
            z.writestr(m, data)
    return out.getvalue()


@pytest.mark.parametrize("members, message", [
    ([("../x", b"x")], "outside its folder"), ([("a", b"/etc/passwd", 0o120777)], "is a link"), ([("a", b"", 0o010644)], "is a device"), ([("a", bytes(2**27))], "unpacks to more than"),
    ([("a/b", b"x"), ("a/B", b"y")], "comes twice")])
def test_hostile_zips(tmp_path, members, message):
    (tmp_path / "x.zip").write_bytes(zip_bytes(("before", b"fine"), *members))
    with pytest.raises(CorpusError, match=message): unpack_safely(tmp_path / "x.zip", tmp_path / "out")
    assert names(tmp_path) == ["x.zip"]


@pytest.mark.parametrize("pack", [tar_bytes, lambda *m: tar_bytes(*m, compress=False), zip_bytes])
def test_good_archives(tmp_path, monkeypatch, pack):
    told = []
    (tmp_path / "x").write_bytes(pack(("top/a", b"a"), ("top/deep/b", CONTENT)))
    (tmp_path / ".out.unpacking").mkdir()  # of a killed one
    (tmp_path / ".out.unpacking" / "half").write_text("half")
    out = unpack_safely(tmp_path / "x", tmp_path / "out", progress=lambda *a: told.append(a))
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {"a": b"a", "deep/b": CONTENT}
    assert names(tmp_path) == ["out", "x"] and told[-1] == ("out", len(CONTENT) + 1, None)
    with pytest.raises(CorpusError, match="is there already"): unpack_safely(tmp_path / "x", out)
    (tmp_path / "y").write_bytes(pack(("a", b"a"), ("b", b"b")))
    assert names(unpack_safely(tmp_path / "y", tmp_path / "flat")) == ["a", "b"]
    told.clear()
    with pytest.raises(CorpusError, match="more than 1 bytes.*larger max_bytes"): unpack_safely(tmp_path / "y", tmp_path / "z", max_bytes=1, progress=lambda *a: told.append(a))
    assert [done for _, done, _ in told] == [1], "the second member is refused before it is written"
    monkeypatch.setattr(corpora, "MOST_FILES", 1)
    with pytest.raises(CorpusError, match="1 files"): unpack_safely(tmp_path / "y", tmp_path / "z")


@pytest.mark.parametrize("pack", [tar_bytes, lambda *m: tar_bytes(*m, compress=False), zip_bytes])
def test_cut_archives(tmp_path, pack):
    "Cut anywhere, also between two members, where a tar reader sees a regular end."
    whole = pack(("top/a", CONTENT[:1500]), ("top/b", CONTENT[1500:3000]))
    for n in {0, 1, 100, 511, 512, 2048, 2560, 4096, len(whole) // 2, len(whole) - 12_000, len(whole) - 9, len(whole) - 1}:
        if not 0 <= n < len(whole): continue
        if not whole[n:].strip(b"\0") and whole[n - 512:n] == bytes(512): continue  # only padding after the end mark is missing
        (tmp_path / "x").write_bytes(whole[:n])
        with pytest.raises(CorpusError, match="truncated|empty"): unpack_safely(tmp_path / "x", tmp_path / "out")
        assert names(tmp_path) == ["x"]


def test_a_spoiled_gzip(tmp_path):
    packed = bytearray(tar_bytes(("top/a", CONTENT)))
    packed[-6] ^= 1  # its check sum
    (tmp_path / "x").write_bytes(packed)
    with pytest.raises(CorpusError, match="damaged"): unpack_safely(tmp_path / "x", tmp_path / "out")
    (tmp_path / "x").write_bytes(gzip.compress(b"this is no tar" * 100))
    with pytest.raises(CorpusError, match="damaged"): unpack_safely(tmp_path / "x", tmp_path / "out")


def test_a_killed_unpacking_leaves_nothing_at_the_final_place(tmp_path):
    (tmp_path / "x").write_bytes(tar_bytes(*((f"top/{i}", CONTENT) for i in range(5))))
    code = "import os, sys\nfrom semgbook.corpora import unpack_safely\nunpack_safely(sys.argv[1], sys.argv[2], progress=lambda name, done, _: done > 700_000 and os.kill(os.getpid(), 9))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "out")])
    assert done.returncode == -signals.SIGKILL and not (tmp_path / "out").exists() and (tmp_path / ".out.unpacking").exists()
    assert len(names(unpack_safely(tmp_path / "x", tmp_path / "out"))) == 5 and names(tmp_path) == ["out", "x"]


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
