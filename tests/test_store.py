"The store: every layout and placement gives the file's own numbers; caches are never trusted; refusals are clear."
import errno
import os
import pickle
import sys
import warnings

import h5py
import numpy as np
import pytest
import torch

from semgbook import store as store_module
from semgbook.session import open_session, read_signal, write_session
from semgbook.store import BufferPool, SignalStore, StoreError, agrees, cache_path, cached_session, map_session, place, read_cache, record_layout


def make(folder, name, n_samples=3000, n_channels=16, seed=0, rate_hz=2000.0, compression=None, scale=1.0):
    rng = np.random.default_rng(seed)
    signal = (scale * rng.normal(size=(n_samples, 2, n_channels))).astype(np.float32)
    times = 1.6e9 + np.arange(n_samples) / rate_hz
    path = write_session(folder / f"{name}.hdf5", signal, times, ["a"], times[5:6], times[9:10], name=name, user="ada", rate_hz=rate_hz, compression=compression)
    return open_session(path)


def rewrite(session, fields, userblock_size=0, **options):
    "The same recording with another record layout."
    with h5py.File(session.path) as f: rows, attributes = f["emg2qwerty/timeseries"][:], dict(f["emg2qwerty"].attrs)
    records = np.zeros(len(rows), np.dtype(fields))
    for name in set(records.dtype.names) & set(rows.dtype.names): records[name] = rows[name]
    with h5py.File(session.path, "w", userblock_size=userblock_size) as f:
        group = f.create_group("emg2qwerty")
        group.create_dataset("timeseries", data=records, **options)
        for k, v in attributes.items(): group.attrs[k] = v
    return open_session(session.path)


L, R, T = ("emg_left", "<f4", (16,)), ("emg_right", "<f4", (16,)), ("time", "<f8")
LAYOUTS = {
    "left_first": [L, R, T], "time_first": [T, L, R], "right_first": [R, L, T], "more_fields": [("marker", "<i4"), R, ("battery", "<f8"), T, L, ("note", "S5")],
    "odd_record": [("flag", "u1"), L, T, R, ("x", "u1")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("userblock_size", [0, 512])
def test_any_record_layout_is_mapped(tmp_path, layout, userblock_size):
    session = rewrite(make(tmp_path, "x"), LAYOUTS[layout], userblock_size)
    assert session.contiguous and record_layout(session)[0] >= userblock_size
    signal = map_session(session)
    assert np.array_equal(signal, read_signal(session)) and signal.shape == (3000, 2, 16)
    batch, lengths = SignalStore([session], "mmap").gather([0, 0], [17, 2900], [1000, 3000])
    assert np.array_equal(batch[0].numpy(), read_signal(session, 17, 1000)) and lengths.tolist() == [983, 100]
    with pytest.raises(ValueError): signal[0] = 0


@pytest.mark.parametrize("n_channels, rate_hz", [(8, 200.0), (1, 500.0), (16, 2000.0)])
def test_other_devices(tmp_path, n_channels, rate_hz):
    sessions = [make(tmp_path, f"s{k}", 500, n_channels, k, rate_hz, c) for k, c in enumerate((None, "gzip"))]
    store = SignalStore(sessions)
    assert (store.n_channels, store.rate_hz) == (n_channels, rate_hz) and store.placement_of == {"s0": "mmap", "s1": "cache"}
    for k, s in enumerate(sessions): assert np.array_equal(store.slice(k, 3, 477).numpy(), read_signal(s, 3, 477))


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return [make(folder, f"s{k}", n, 16, k, compression=c) for k, (n, c) in enumerate(((3000, None), (2500, "gzip"), (70_001, None), (69_999, "gzip")))]


@pytest.mark.parametrize("placement, dtype", [("auto", torch.float32), ("cache", torch.float32), ("ram", torch.float32), ("device", torch.float32),
                                              ("auto", torch.float16), ("ram", torch.float16), ("device", torch.float16)])
def test_every_placement_gives_the_same_batch(sessions, tmp_path, placement, dtype):
    rng = np.random.default_rng(1)
    store = SignalStore(sessions, placement, cache_dir=tmp_path, dtype=dtype)
    ids = rng.integers(0, 4, 40)
    starts = (rng.random(40) * store.n_samples[ids]).astype(int)
    stops = np.minimum(starts + rng.integers(0, 900, 40), store.n_samples[ids])
    batch, lengths = store.gather(ids, starts, stops)
    assert batch.dtype == torch.float32 and batch.shape == (40, (stops - starts).max(), 2, 16) and lengths.dtype == torch.int64
    for row, i, a, b in zip(batch, ids, starts, stops):
        expected = read_signal(sessions[i], a, b).astype(np.dtype(str(dtype)[6:])).astype(np.float32)
        assert np.array_equal(row[:b - a].numpy(), expected) and not row[b - a:].any()
    assert set(store.placement_of.values()) <= ({placement} if placement != "auto" else {"mmap", "cache"})
    assert store.is_resident == (placement == "device")


def test_gather_edges(sessions):
    for placement in ("auto", "device"):
        store = SignalStore(sessions[:2], placement)
        assert store.gather([], [], [])[0].shape == (0, 0, 2, 16)
        batch, lengths = store.gather([1, 0], [2500, 0], [2500, 3000])
        assert lengths.tolist() == [0, 3000] and not batch[0].any() and batch[1].any()
        assert np.array_equal(store.gather(torch.tensor([1]), torch.tensor([7]), torch.tensor([9]))[0][0].numpy(), read_signal(sessions[1], 7, 9))


def test_many_sessions_keep_no_file_open(tmp_path):
    if not sys.platform.startswith("linux"): pytest.skip("counts open files the Linux way")
    session, packed = make(tmp_path, "x"), make(tmp_path, "y", compression="gzip")
    cached_session(packed)
    before = len(os.listdir("/proc/self/fd"))
    stores = [SignalStore([session, packed]) for _ in range(40)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 and len(stores) == 40


def test_store_travels_to_another_process(sessions):
    store = SignalStore(sessions)
    blob = pickle.dumps(store)
    assert len(blob) < 200_000                                              # files are mapped anew, no signal travels
    assert torch.equal(pickle.loads(blob).gather([3], [9], [99])[0], store.gather([3], [9], [99])[0])


# ----------------------------------------------------------------------------------------------------------- caches
def test_cache_is_made_once_and_found_again(tmp_path):
    session = make(tmp_path, "x", compression="gzip")
    folder = tmp_path / "cache"
    assert place(session, "auto", folder)[0] == "cache"
    path = cache_path(session, folder)
    stamp = path.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(cached_session(session, folder), read_signal(session))
    assert path.stat().st_mtime_ns == stamp and [p.name for p in folder.iterdir()] == [path.name]
    assert np.array_equal(np.load(path), read_signal(session))               # an ordinary .npy file


def test_where_caches_go(tmp_path, monkeypatch):
    session = make(tmp_path, "x", compression="gzip")
    monkeypatch.delenv("SEMGBOOK_CACHE", raising=False)
    assert cache_path(session).parent == tmp_path / ".semgbook-cache"
    monkeypatch.setenv("SEMGBOOK_CACHE", str(tmp_path / "elsewhere"))
    assert cache_path(session).parent == tmp_path / "elsewhere"
    assert cache_path(session, tmp_path / "given").parent == tmp_path / "given"
    assert cache_path(session, dtype=np.float16) != cache_path(session)


def test_changed_content_gets_another_cache(tmp_path):
    session = make(tmp_path, "x", compression="gzip", seed=1)
    cached_session(session)
    changed = make(tmp_path, "x", compression="gzip", seed=2)
    assert np.array_equal(cached_session(changed), read_signal(changed))
    assert np.array_equal(SignalStore([changed]).slice(0, 0, 10).numpy(), read_signal(changed, 0, 10))


def test_large_files_are_also_known_by_their_time(tmp_path, monkeypatch):
    "The fingerprint of a large file skips its middle; a change there must still be seen."
    session = make(tmp_path, "x", compression="gzip")
    real = type(session.path).stat
    class Large:
        def __init__(self, s): self.st_size, self.st_mtime_ns = 10**9, s.st_mtime_ns
    monkeypatch.setattr(store_module, "fingerprint", lambda p: "ends only")
    monkeypatch.setattr(type(session.path), "stat", lambda p, **k: Large(real(p, **k)) if p == session.path else real(p, **k))
    before = cache_path(session)
    os.utime(session.path, ns=(1, 1))
    assert cache_path(session) != before


def spoil_truncate(path): path.write_bytes(path.read_bytes()[:-100])
def spoil_grow(path): path.write_bytes(path.read_bytes() + b"x" * 100)
def spoil_header(path): path.write_bytes(b"not a cache" + path.read_bytes()[11:])
def spoil_empty(path): path.write_bytes(b"")
def spoil_shape(path): np.save(path, np.load(path)[:, :, :8])
def spoil_dtype(path): np.save(path, np.load(path).astype(np.float64))
def spoil_zeros(path): np.save(path, np.zeros_like(np.load(path)))
def spoil_order(path): np.save(path, np.asfortranarray(np.load(path)))


def spoil_tail(path):
    x = np.load(path)
    x[-3:] = 0                                                              # as after a crash before the last pages reached the disk
    np.save(path, x)


@pytest.mark.parametrize("spoil", [v for k, v in sorted(globals().items()) if k.startswith("spoil_")])
def test_damaged_cache_is_noticed_and_repaired(tmp_path, spoil):
    session = make(tmp_path, "x", compression="gzip")
    del_me = cached_session(session)
    del del_me
    path = cache_path(session)
    spoil(path)
    assert read_cache(session, path) is None
    with pytest.warns(UserWarning, match="damaged; it is written again from x.hdf5"): signal = cached_session(session)
    assert np.array_equal(signal, read_signal(session))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_session(session)


def test_cache_that_cannot_be_written(tmp_path):
    session = make(tmp_path, "x", compression="gzip")
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="SEMGBOOK_CACHE.*kept in memory"): store = SignalStore([session], cache_dir=tmp_path / "file")
    assert store.placement_of == {"x": "ram"} and np.array_equal(store.slice(0, 0, 3000).numpy(), read_signal(session))
    with pytest.raises(StoreError, match="cannot be written.*SEMGBOOK_CACHE.*MB free"): SignalStore([session], "cache", cache_dir=tmp_path / "file")


def test_disk_that_fills_up_half_way(tmp_path):
    resource = pytest.importorskip("resource")
    session = make(tmp_path, "x", 20_000, compression="gzip")                 # 2.6 MB unpacked
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.warns(UserWarning, match="kept in memory"): used, signal = place(session)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert used == "ram" and np.array_equal(signal, read_signal(session))
    assert not any(cache_path(session).parent.iterdir())                     # no half cache, no leftover
    assert place(session)[0] == "cache"


def test_no_space_left_is_explained(tmp_path, monkeypatch):
    session = make(tmp_path, "x", compression="gzip")
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(store_module, "write_cache", full)
    with pytest.raises(StoreError, match="No space left.*SEMGBOOK_CACHE"): cached_session(session)


# ---------------------------------------------------------------------------------------------------------- refusals
def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    session = make(tmp_path, "loud", scale=1e5)
    for placement in ("ram", "cache", "device"):
        with pytest.raises(StoreError, match="65504; use dtype float32"): SignalStore([session], placement, dtype=torch.float16)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".npy", ".tmp")]


def test_clear_refusals(sessions, tmp_path):
    other = make(tmp_path, "other", 500, 8, rate_hz=200.0)
    slow = make(tmp_path, "slow", 500, 16, rate_hz=1000.0)
    cases = [
        (lambda: SignalStore([]), "empty"), (lambda: SignalStore(sessions, "gpu"), "gpu.*auto, mmap, cache, ram, device"),
        (lambda: SignalStore(sessions, dtype=torch.int16), "float32 or torch.float16"), (lambda: SignalStore(sessions, "mmap"), "s1.hdf5.*compressed"),
        (lambda: SignalStore(sessions[:1], "mmap", dtype=torch.float16), "mapped as it is"),
        (lambda: SignalStore([sessions[0], other]), "s0.hdf5 has 16 electrodes.*other.hdf5 has 8"), (lambda: SignalStore([sessions[0], slow]), "2000 Hz.*1000"),
    ]
    store = SignalStore(sessions)
    for bad in (([4], [0], [1]), ([-1], [0], [1])): cases.append((lambda b=bad: store.gather(*b), "no session number"))
    for bad in (([0], [-1], [1]), ([0], [0], [3001]), ([0], [9], [8])): cases.append((lambda b=bad: store.gather(*b), "session s0: samples"))
    for attempt, message in cases:
        with pytest.raises(StoreError, match=message): attempt()


def test_device_that_is_too_small(sessions, monkeypatch):
    monkeypatch.setattr(store_module, "room_on", lambda device: 1e6)
    with pytest.raises(StoreError, match="takes 0.02 GB.*has room for 0.00 GB; use placement auto"): SignalStore(sessions[2:], "device")
    assert not store_module.lives_on_device("auto", torch.device("cuda"), 10**7)
    assert store_module.lives_on_device("auto", torch.device("cuda"), 10**5)


def test_a_wrong_offset_is_noticed(sessions, monkeypatch):
    real = record_layout(sessions[0])
    monkeypatch.setattr(store_module, "record_layout", lambda s: (real[0] - 136, real[1]))
    with pytest.raises(StoreError, match="differ from what HDF5 reads"): map_session(sessions[0])


def test_agrees_sees_each_end(sessions):
    signal = read_signal(sessions[0])
    assert agrees(signal, sessions[0])
    for place_ in (0, 1495, -1):
        spoilt = signal.copy()
        spoilt[place_, 1, 3] += 1
        assert not agrees(spoilt, sessions[0])


def test_description_says_what_was_chosen(sessions, tmp_path):
    text = SignalStore(sessions, cache_dir=tmp_path).describe()
    for words in ("4 sessions", "2 x 16 electrodes at 2000 Hz", "2 mapped in the session files", "2 mapped from cache files", "19 MB in float32"): assert words in text
    assert "4 resident on the device" in SignalStore(sessions, "device", dtype=torch.float16, cache_dir=tmp_path).describe()


# ------------------------------------------------------------------------------------------------------------ buffers
def test_buffers_in_use_are_never_handed_out():
    pool, rng, held = BufferPool(keep=2), np.random.default_rng(0), []
    for k in range(300):
        held.append((pool.take(tuple(rng.integers(1, 9, 3))).fill_(k), k))
        if rng.random() < 0.5: held.pop(rng.integers(len(held)))
        assert all((t == n).all() for t, n in held)
    assert len(pool.free) <= 2
    views = [pool.take((5, 4)).fill_(-1)[2], pool.take((5, 4)).fill_(-2).numpy()[1:]]  # the tensors are gone, parts of them are not
    pool.take((5, 4)).fill_(7)
    assert (views[0] == -1).all() and (views[1] == -2).all()


def test_very_large_buffers_are_not_kept():
    pool = BufferPool(largest=100)
    tensor = pool.take((101,))
    del tensor
    assert not pool.free
