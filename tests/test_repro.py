"Streams, hashes, devices, atomic files (also under a full disk and a kill), provenance."
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from semgbook.repro import (DeviceError, atomic_path, atomic_write, canonical_json, code_version, fingerprint, make_generator, numpy_generator,
                            pick_device, provenance, stable_hash, stream_seed, use_deterministic)


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


@pytest.fixture
def global_state():
    "Put torch's global switches back after a test."
    mode, benchmark, cudnn = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    fill = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.utils.deterministic.fill_uninitialized_memory = benchmark, cudnn, fill


def test_hashes_never_change():
    "Run ids, caches and random streams on disk depend on these."
    assert stable_hash({"b": [1, 2.5, None], "a": "ü"}, 16) == stable_hash({"a": "ü", "b": (1, 2.5, None)}, 16) == "91ff63a7ddb19a1b"
    assert stream_seed(0, "jitter", 3) == 1052336122856861924
    assert torch.randint(0, 1000, (4,), generator=make_generator(0, "jitter", 3)).tolist() == [710, 591, 181, 870]
    assert numpy_generator(0, "user").integers(0, 1000, 4).tolist() == [126, 389, 252, 770]


def test_hash_of_dataclasses_and_refusals():
    @dataclass
    class Point:
        x: int
        y: float
    assert canonical_json(Point(1, 2.0)) == '{"x":1,"y":2.0}'
    for odd in (np.zeros(2), {1, 2}, object(), torch.zeros(1)):
        with pytest.raises(TypeError, match="turn it into text or a number"):
            stable_hash(odd)
    with pytest.raises(ValueError):
        stable_hash(float("nan"))
    assert len(stable_hash("x")) == 8 and len(stable_hash("x", 64)) == 64


def test_streams_are_separate_and_independent_of_order():
    seeds = {stream_seed(s, *name) for s in range(20) for name in ((), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "0"))}
    assert len(seeds) == 120
    first = make_generator(1, "x")
    torch.rand(100, generator=make_generator(1, "y"))
    assert torch.rand(5, generator=first).equal(torch.rand(5, generator=make_generator(1, "x")))
    assert stream_seed(np.int64(3), "x") == stream_seed(3, "x")


def test_streams_do_not_touch_the_global_one():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(10, generator=make_generator(5, "x"))
    numpy_generator(5, "x").normal(size=3)
    assert torch.rand(3).equal(expected)


def test_use_deterministic_repeats_every_global_stream(global_state):
    import random
    draws = []
    for seed in (3, 3, 4):
        use_deterministic(seed)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item(), torch.nn.functional.dropout(torch.ones(64)).sum().item()))
    assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[0][:3], draws[2][:3], strict=True))


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda") and pick_device(torch.device("cpu")).type == "cpu"
    with pytest.raises(DeviceError, match="torch sees .* use device=auto"):
        pick_device("cuda:99")
    with pytest.raises(DeviceError, match="'gpu' is not a device name; use auto"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="0 CUDA GPUs"):
            pick_device("cuda")


def test_atomic_write_makes_folders_and_keeps_normal_permissions(tmp_path):
    path = atomic_write(tmp_path / "a" / "b" / "x.txt", "grüße\n")
    assert path.read_bytes() == "grüße\n".encode() and atomic_write(path, b"\x00\xff").read_bytes() == b"\x00\xff"
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("existed", [True, False])
def test_an_exception_in_the_middle_leaves_nothing(tmp_path, error, existed):
    path = tmp_path / "results.json"
    if existed:
        path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * existed


def test_a_full_disk_is_told_with_file_and_remedy_and_leaves_the_old_file(tmp_path):
    "A limit on the file size stands for the disk that is full."
    resource = pytest.importorskip("resource")
    path = tmp_path / "results.json"
    path.write_text("old")
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        atomic_write(path, "x" * 100_000)
    status, message = forked(work)
    assert status == 1 and "free some space" in message and "results.json" in message
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")

    def work():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert forked(work)[0] == -signal.SIGKILL and path.read_text() == "old"
    assert all(p.name.startswith(".") and p.suffix == ".tmp" for p in tmp_path.iterdir() if p != path)


def test_fingerprint_is_of_content_and_names(tmp_path):
    a, b = atomic_write(tmp_path / "a.hdf5", b"1" * 1000), atomic_write(tmp_path / "b.hdf5", b"2" * 1000)
    copy = atomic_write(tmp_path / "copy" / "a.hdf5", b"1" * 1000)
    os.utime(copy, (0, 0))
    name = fingerprint([a, b])
    assert len(name) == 16 and name == fingerprint((b, copy)) == fingerprint(iter([str(b), a]))
    assert fingerprint(a) == fingerprint([a]) != name
    assert fingerprint(atomic_write(tmp_path / "c.hdf5", b"1" * 1000)) != fingerprint(a)
    assert fingerprint(atomic_write(a, b"1" * 999 + b"0")) != fingerprint(copy)


def test_fingerprint_of_a_large_file_reads_head_and_tail(tmp_path):
    "Sparse, so that it costs no disk; the documented blind spot lies in the middle."
    path, size = tmp_path / "large.hdf5", 100 * 2**20

    def poke(position):
        with open(path, "r+b") as f:
            f.seek(position)
            f.write(b"x")
        return fingerprint(path)
    path.touch()
    os.truncate(path, size)
    blank = fingerprint(path)
    middle, head, tail = poke(size // 2), poke(32 * 2**20 - 1), poke(size - 1)
    assert blank == middle and len({middle, head, tail}) == 3
    os.truncate(path, size + 1)
    assert fingerprint(path) != tail


def test_provenance_is_plain_and_does_not_import_lightning():
    record = provenance("abc", pick_device("cpu"), 3)
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {"versions", "commit", "dirty", "platform", "device", "device_name", "seed", "data_fingerprint"}
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0]) and record["seed"] == 3
    code = "import sys; from semgbook.repro import provenance; provenance(); sys.exit('lightning' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_code_version_outside_and_inside_version_control(tmp_path):
    assert code_version(tmp_path) == {"commit": None, "dirty": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    try:
        subprocess.run([*git, "init", "-q"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("git is not here")
    (tmp_path / "x.py").write_text("1")
    subprocess.run([*git, "add", "x.py"], check=True, capture_output=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True, capture_output=True)
    assert len(code_version(tmp_path)["commit"]) == 40 and code_version(tmp_path)["dirty"] is False
    time.sleep(0.01)
    (tmp_path / "x.py").write_text("22")
    assert code_version(tmp_path)["dirty"] is True
