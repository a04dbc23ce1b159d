"A server with the faults a test asks for, a bucket and archives to serve; nothing here needs the package."
import hashlib
import io
import tarfile
import threading
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
FAST = dict(pause_s=0.001, timeout=5.0)  # patience of `download` in a test


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
    "An answer without content."
    handler.send_response(code)
    for name, value in headers.items(): handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def names(folder):
    "What lies in a folder."
    return sorted(p.name for p in folder.iterdir())


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


def falls_silent(stop, after):
    "What to do: the first answer says nothing more after so many bytes, until told to stop; the next ones are whole."
    def behave(h, n):
        if n > 1: return answer(h)
        answer(h, cut=after)
        h.wfile.flush()
        stop.wait(20)
    return behave
