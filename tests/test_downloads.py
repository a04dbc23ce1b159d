"Downloads from servers that lie, cut and stall; buckets and archives that nobody should trust."
import gzip
import hashlib
import io
import json
import os
import signal as signals
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from types import SimpleNamespace

import pytest

from semgbook import downloads
from semgbook.downloads import DownloadError, RemoteFile, digest_of, download, list_bucket, progress_line, unpack_safely
from toy_server import CONTENT, FAST, OBJECTS, SHA, Server, answer, bucket, falls_silent, names, refuse, tar_bytes


# ---- names for bytes

def test_digests_are_those_of_the_tools(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert digest_of(path) == SHA and digest_of(path, "md5") == f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    git = subprocess.run(["git", "hash-object", "--no-filters", path], capture_output=True, text=True)
    assert git.returncode or digest_of(path, "git") == f"git:{git.stdout.strip()}"
    path.write_bytes(b"")
    assert digest_of(path, "git") == "git:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


# ---- a server with faults

def test_a_plain_download(serve, tmp_path):
    server, told = serve(lambda h, n: answer(h)), []
    path = download(RemoteFile("", server.url + "/x", len(CONTENT), SHA), tmp_path / "deep" / "x.bin", lambda *a: told.append(a), **FAST)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["x.bin"] and len(server.asked) == 1
    assert told[-1] == ("x.bin", len(CONTENT), len(CONTENT)) and [t[1] for t in told] == sorted(t[1] for t in told)


def test_cut_often_and_resumed(serve, tmp_path):
    "More cuts than tries: only tries in a row without progress count; no byte is sent twice."
    server = serve(lambda h, n: answer(h, cut=20_000))
    download(RemoteFile("", server.url, None, SHA), tmp_path / "x", tries=2, **FAST)
    assert (tmp_path / "x").read_bytes() == CONTENT and len(server.asked) == 15
    assert [a.range for a in server.asked[1:]] == [f"bytes={20_000 * i}-" for i in range(1, 15)] and {a.if_range for a in server.asked[1:]} == {'"one"'}


def test_resumed_by_a_later_call(serve, tmp_path):
    server = serve(lambda h, n: answer(h, cut=100_000) if n == 1 else refuse(h, 503) if n < 4 else answer(h))
    with pytest.raises(DownloadError, match=r"3 tries in a row .*503.* 100,000 bytes are kept in x\.part, fetch again"):
        download(RemoteFile("", server.url, None, SHA), tmp_path / "x", tries=3, **FAST)
    assert names(tmp_path) == ["x.part", "x.part.json"] and len(server.asked) == 3
    server.asked.append(None)  # the next one is the fifth
    download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST)
    assert server.asked[-1].range == "bytes=100000-" and (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]


def test_a_server_that_ignores_ranges(serve, tmp_path):
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, ranges=False))
    assert download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert server.asked[1].range == "bytes=100000-"


def test_a_server_that_answers_another_range(serve, tmp_path):
    "206 that begins elsewhere: everything is asked for again."
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, content_range="bytes 5-9/10"))
    assert download(RemoteFile("", server.url), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == [None, "bytes=100000-", None]


@pytest.mark.parametrize("mark", ["etag", "modified"])
def test_a_file_that_changed_in_between_is_begun_again(serve, tmp_path, mark):
    new = CONTENT[::-1]
    marks = [{"etag": '"one"'}, {"etag": '"two"'}] if mark == "etag" else [{"etag": None, "modified": f"Sat, {d} Aug 2026 10:00:00 GMT"} for d in (1, 8)]
    server = serve(lambda h, n: answer(h, cut=100_000, **marks[0]) if n == 1 else answer(h, new, **marks[1]))
    assert download(RemoteFile("", server.url), tmp_path / "x", **FAST).read_bytes() == new
    assert server.asked[1].if_range == next(filter(None, marks[0].values()))


def test_a_changed_file_from_a_server_that_ignores_if_range(serve, tmp_path):
    "The 206 carries another mark: it is not joined to the old part."
    def behave(h, n):
        if n == 1: return answer(h, cut=100_000)
        if h.headers["If-Range"]: h.headers.replace_header("If-Range", '"two"')
        answer(h, CONTENT[::-1], etag='"two"')
    assert download(RemoteFile("", serve(behave).url), tmp_path / "x", **FAST).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
@pytest.mark.parametrize("digest", [None, SHA])
def test_without_a_mark_only_a_checksum_allows_to_go_on(serve, tmp_path, etag, digest):
    server = serve(lambda h, n: answer(h, cut=100_000 if n == 1 else None, etag=etag))
    assert download(RemoteFile("", server.url, None, digest), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == [None, "bytes=100000-" if digest else None]


def test_a_part_that_was_complete_when_the_process_was_killed(serve, tmp_path):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x.part").write_bytes(CONTENT)
    (tmp_path / "x.part.json").write_text(json.dumps({"url": server.url, "version": '"one"'}))
    assert download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    assert [a.range for a in server.asked] == ["bytes=300000-"]


@pytest.mark.parametrize("junk, url", [(b"x" * 400_000, ""), (b"x" * 1000, "http://other/")])
def test_a_part_of_something_else_is_thrown_away(serve, tmp_path, junk, url):
    server = serve(lambda h, n: answer(h))
    (tmp_path / "x.part").write_bytes(junk)
    (tmp_path / "x.part.json").write_text(json.dumps({"url": url or server.url, "version": '"one"'}))
    assert download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT


def test_announced_too_long(serve, tmp_path):
    "The line ends early each time; where ranges work, the server itself says in the end that there is no more."
    server = serve(lambda h, n: answer(h, length=400_000))
    assert download(RemoteFile("", server.url), tmp_path / "x", **FAST).read_bytes() == CONTENT and len(server.asked) == 2
    server = serve(lambda h, n: answer(h, length=400_000, ranges=False))
    with pytest.raises(DownloadError, match="3 tries in a row .*300,000 of 400,000 bytes"): download(RemoteFile("", server.url), tmp_path / "y", tries=3, **FAST)
    assert not (tmp_path / "y").exists()


def test_announced_too_short(serve, tmp_path):
    server = serve(lambda h, n: answer(h, length=200_000))
    with pytest.raises(DownloadError, match="has 200,000 bytes, but 300,000 are published"): download(RemoteFile("", server.url, 300_000), tmp_path / "x", **FAST)
    with pytest.raises(DownloadError, match="the download has sha256:.*set aside as x.rejected"): download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST)
    assert "x" not in names(tmp_path)


def test_no_length_at_all(serve, tmp_path):
    def behave(h, n):
        h.send_response(200)
        h.end_headers()
        h.wfile.write(CONTENT)
    assert download(RemoteFile("", serve(behave).url, 300_000, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="has 300,000 bytes, published are 300,001"): download(RemoteFile("", serve(behave).url, 300_001), tmp_path / "y", **FAST)


@pytest.mark.parametrize("kind", ["sha256", "md5", "git"])
def test_corrupt_bytes(serve, tmp_path, kind):
    (tmp_path / "true").write_bytes(CONTENT)
    digest = digest_of(tmp_path / "true", kind)
    spoiled = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]
    server = serve(lambda h, n: answer(h, spoiled if n == 1 else CONTENT))
    file = RemoteFile("", server.url, 300_000, digest)
    with pytest.raises(DownloadError, match=f"x: the download has {kind}:.*published is {digest}; fetch again"): download(file, tmp_path / "x", **FAST)
    assert names(tmp_path) == ["true", "x.rejected"] and (tmp_path / "x.rejected").read_bytes() == spoiled
    assert download(file, tmp_path / "x", **FAST).read_bytes() == CONTENT


def test_trust_on_first_use(serve, tmp_path):
    server = serve(lambda h, n: answer(h, CONTENT if n < 3 else b"other"))
    file = RemoteFile("", server.url)
    download(file, tmp_path / "x", **FAST)
    assert (tmp_path / "x.sha256").read_text() == f"{SHA[7:]}  x\n"
    (tmp_path / "x").unlink()
    download(file, tmp_path / "x", **FAST).unlink()
    with pytest.raises(DownloadError, match=r"recorded at the first download is .* delete x\.sha256"): download(file, tmp_path / "x", **FAST)
    (tmp_path / "x.sha256").unlink()
    assert download(file, tmp_path / "x", **FAST).read_bytes() == b"other"


def test_redirects(serve, tmp_path):
    other = serve(lambda h, n: answer(h))
    server = serve(lambda h, n: refuse(h, 302, Location=other.url + "/moved"))
    assert download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST).read_bytes() == CONTENT
    loop = serve(lambda h, n: refuse(h, 302, Location="/again"))
    with pytest.raises(DownloadError, match="answers 302 .*infinite loop"): download(RemoteFile("", loop.url), tmp_path / "y", **FAST)
    assert len(loop.asked) < 20
    (tmp_path / "secret").write_text("secret")
    for bad in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "data:,x"):
        server = serve(lambda h, n, bad=bad: refuse(h, 302, Location=bad))
        with pytest.raises(DownloadError, match="not (followed|allowed)"): download(RemoteFile("", server.url), tmp_path / "z", **FAST)
        assert len(server.asked) == 1 and not (tmp_path / "z").exists()


def test_no_way_down_from_https():
    request = urllib.request.Request("https://a.example/x")
    handler = downloads._Redirects()
    with pytest.raises(DownloadError, match="from https to http is not followed"): handler.redirect_request(request, None, 302, "", {}, "http://a.example/x")
    assert handler.redirect_request(request, None, 302, "", {}, "https://b.example/x").full_url == "https://b.example/x"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "data:,x"])
def test_only_the_web_is_fetched(tmp_path, url):
    with pytest.raises(DownloadError, match="only http and https"): download(RemoteFile("", url), tmp_path / "x", **FAST)


def test_not_there_is_not_tried_again(serve, tmp_path):
    for code in (403, 404, 410):
        server = serve(lambda h, n, code=code: refuse(h, code))
        with pytest.raises(DownloadError, match=f"answers {code} .*check the address"): download(RemoteFile("", server.url), tmp_path / "x", **FAST)
        assert len(server.asked) == 1 and names(tmp_path) == []


def test_busy_is_tried_again_after_a_pause(serve, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server = serve(lambda h, n: refuse(h, 503) if n < 3 else refuse(h, 429, Retry_After="7") if n == 3 else refuse(h, 500, Retry_After="9999") if n == 4 else answer(h))
    download(RemoteFile("", server.url, None, SHA), tmp_path / "x", pause_s=1.0)
    assert pauses == [1.0, 2.0, 7.0, 60.0]


def test_silence_is_a_cut(serve, tmp_path):
    stop = threading.Event()
    behave = falls_silent(stop, 100_000)
    began = time.monotonic()
    download(RemoteFile("", serve(behave).url, None, SHA), tmp_path / "x", pause_s=0.001, timeout=0.3)
    stop.set()
    assert (tmp_path / "x").read_bytes() == CONTENT and time.monotonic() - began < 4
    with pytest.raises(DownloadError, match="2 tries in a row brought nothing new"):
        download(RemoteFile("", serve(lambda h, n: time.sleep(1)).url), tmp_path / "y", tries=2, pause_s=0.001, timeout=0.2)


def test_nobody_listens(tmp_path):
    server = Server(lambda h, n: None)
    server.close()
    with pytest.raises(DownloadError, match="2 tries in a row .*refused"): download(RemoteFile("", server.url), tmp_path / "x", tries=2, **FAST)


def test_an_encoded_answer_is_refused(serve, tmp_path):
    server = serve(lambda h, n: refuse(h, 200, Content_Encoding="gzip"))
    with pytest.raises(DownloadError, match="gzip-encoded"): download(RemoteFile("", server.url), tmp_path / "x", **FAST)


def test_a_disk_that_is_too_small_is_noticed_before(serve, tmp_path, monkeypatch):
    server = serve(lambda h, n: answer(h))
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    with pytest.raises(DownloadError, match=r"x needs 0\.00 GB.*free some space"): download(RemoteFile("", server.url), tmp_path / "x", **FAST)
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_disk_that_runs_full_is_named(serve, tmp_path):
    os.symlink("/dev/full", tmp_path / "x.part")
    with pytest.raises(DownloadError, match=r"x\.part: cannot be written .*No space left.*free some space"): download(RemoteFile("", serve(lambda h, n: answer(h)).url), tmp_path / "x", **FAST)


def test_two_at_once(serve, tmp_path):
    pytest.importorskip("fcntl")
    go, begun = threading.Event(), threading.Event()
    def behave(h, n):
        begun.set()
        go.wait(5)
        answer(h)
    file = RemoteFile("", serve(behave).url, None, SHA)
    first = threading.Thread(target=download, args=(file, tmp_path / "x"))
    first.start()
    begun.wait(5)
    try:
        with pytest.raises(DownloadError, match="another process is fetching"): download(file, tmp_path / "x", **FAST)
    finally: go.set()
    first.join()
    assert (tmp_path / "x").read_bytes() == CONTENT and names(tmp_path) == ["x"]


def test_a_killed_download_goes_on(serve, tmp_path):
    "A process is killed in the middle; the next one asks for the rest, and no lock is left."
    stop = threading.Event()
    behave = falls_silent(stop, 262_144)
    server = serve(behave)
    code = "import sys\nfrom semgbook.downloads import RemoteFile, download\ndownload(RemoteFile('', sys.argv[1]), sys.argv[2], lambda *a: print('*', flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path / "x")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"*\n"
    process.send_signal(signals.SIGKILL)
    process.wait()
    stop.set()
    kept = (tmp_path / "x.part").stat().st_size
    download(RemoteFile("", server.url, None, SHA), tmp_path / "x", **FAST)
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
    with pytest.raises(DownloadError, match=message): list_bucket(serve(lambda h, n: answer(h, text)).url, "nm/")


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
    with pytest.raises(DownloadError, match=message) as caught: unpack_safely(tmp_path / "in" / "x.tar.gz", tmp_path / "in" / "out")
    assert "x.tar.gz" in str(caught.value) and names(tmp_path / "in") == ["x.tar.gz"] and names(tmp_path) == ["in"]


def test_an_absolute_name(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(tar_bytes((f"{tmp_path}/evil", b"x")))
    with pytest.raises(DownloadError, match="outside its folder"): unpack_safely(tmp_path / "x.tar.gz", tmp_path / "out")
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
    with pytest.raises(DownloadError, match=message): unpack_safely(tmp_path / "x.zip", tmp_path / "out")
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
    with pytest.raises(DownloadError, match="is there already"): unpack_safely(tmp_path / "x", out)
    (tmp_path / "y").write_bytes(pack(("a", b"a"), ("b", b"b")))
    assert names(unpack_safely(tmp_path / "y", tmp_path / "flat")) == ["a", "b"]
    told.clear()
    with pytest.raises(DownloadError, match="more than 1 bytes.*larger max_bytes"): unpack_safely(tmp_path / "y", tmp_path / "z", max_bytes=1, progress=lambda *a: told.append(a))
    assert [done for _, done, _ in told] == [1], "the second member is refused before it is written"
    monkeypatch.setattr(downloads, "MOST_FILES", 1)
    with pytest.raises(DownloadError, match="1 files"): unpack_safely(tmp_path / "y", tmp_path / "z")


@pytest.mark.parametrize("pack", [tar_bytes, lambda *m: tar_bytes(*m, compress=False), zip_bytes])
def test_cut_archives(tmp_path, pack):
    "Cut anywhere, also between two members, where a tar reader sees a regular end."
    whole = pack(("top/a", CONTENT[:1500]), ("top/b", CONTENT[1500:3000]))
    for n in {0, 1, 100, 511, 512, 2048, 2560, 4096, len(whole) // 2, len(whole) - 12_000, len(whole) - 9, len(whole) - 1}:
        if not 0 <= n < len(whole): continue
        if not whole[n:].strip(b"\0") and whole[n - 512:n] == bytes(512): continue  # only padding after the end mark is missing
        (tmp_path / "x").write_bytes(whole[:n])
        with pytest.raises(DownloadError, match="truncated|empty"): unpack_safely(tmp_path / "x", tmp_path / "out")
        assert names(tmp_path) == ["x"]


def test_a_tar_cut_behind_a_file_that_ends_in_zeros(tmp_path):
    "Its last block is zeros too, and yet no end mark: header and content end at 1536 and 3584."
    whole = tar_bytes(("top/a", bytes(1024)), ("top/b", CONTENT[:1500]), compress=False)
    for n in (1536, 3584):
        (tmp_path / "x").write_bytes(whole[:n])
        with pytest.raises(DownloadError, match="no end mark"): unpack_safely(tmp_path / "x", tmp_path / "out")
        assert names(tmp_path) == ["x"]
    (tmp_path / "x").write_bytes(whole[:3584 + 512])
    assert names(unpack_safely(tmp_path / "x", tmp_path / "out")) == ["a", "b"]


def test_a_spoiled_gzip(tmp_path):
    packed = bytearray(tar_bytes(("top/a", CONTENT)))
    packed[-6] ^= 1  # its check sum
    (tmp_path / "x").write_bytes(packed)
    with pytest.raises(DownloadError, match="damaged"): unpack_safely(tmp_path / "x", tmp_path / "out")
    (tmp_path / "x").write_bytes(gzip.compress(b"this is no tar" * 100))
    with pytest.raises(DownloadError, match="damaged"): unpack_safely(tmp_path / "x", tmp_path / "out")


def test_a_killed_unpacking_leaves_nothing_at_the_final_place(tmp_path):
    (tmp_path / "x").write_bytes(tar_bytes(*((f"top/{i}", CONTENT) for i in range(5))))
    code = "import os, sys\nfrom semgbook.downloads import unpack_safely\nunpack_safely(sys.argv[1], sys.argv[2], progress=lambda name, done, _: done > 700_000 and os.kill(os.getpid(), 9))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "out")])
    assert done.returncode == -signals.SIGKILL and not (tmp_path / "out").exists() and (tmp_path / ".out.unpacking").exists()
    assert len(names(unpack_safely(tmp_path / "x", tmp_path / "out"))) == 5 and names(tmp_path) == ["out", "x"]
