"""How much faster windows are loaded from a store than by a per-window pipeline; ratios of one run, medians of alternating repeats.

Usage: OMP_NUM_THREADS=1 python benchmarks/loading.py [--minutes 15] [--repeats 7]
The per-window pipeline is the usual one, written plainly: for every window an h5py slice, a scan of the session's key log from its start,
rotation and alignment jitter, torch.stft, spectrogram masks; then padding and stacking in Python. Both sides load the same windows, from
files in the page cache, with one thread. Nothing is asserted; the numbers are printed and written to benchmarks/results/loading.json.
"""
import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch

from semgbook.charset import QWERTY
from semgbook.repro import atomic_write, make_generator, provenance
from semgbook.session import open_session, write_session
from semgbook.splits import whole
from semgbook.store import SignalStore
from semgbook.windows import WindowIndex, WindowLoader, WindowSet, WindowSpec

SPEC, BATCH, RATE = WindowSpec(8000, 1800, 200), 32, 2000.0


def write_noise(folder, name, minutes, seed, compression=None):
    "A session of noise with 4.3 key presses a second."
    rng = np.random.default_rng(seed)
    n = int(minutes * 60 * RATE)
    times = 1.6e9 + np.arange(n) / RATE
    presses = np.sort(rng.uniform(times[0], times[-1], int(minutes * 60 * 4.3)))
    keys = rng.choice(list("etaoinshrdlu") + ["Key.space", "Key.shift", "Key.backspace"], len(presses)).tolist()
    signal = rng.standard_normal((n, 2, 16), dtype=np.float32) * 5
    return open_session(write_session(folder / f"{name}.hdf5", signal, times, keys, presses, presses + 0.1, name=name, user="ada", compression=compression))


class PerWindow:
    "One window at a time, from the file to augmented spectrograms and labels."
    def __init__(self, session):
        self.file = h5py.File(session.path)
        self.rows = self.file["emg2qwerty/timeseries"]
        self.strokes = json.loads(self.file["emg2qwerty"].attrs["keystrokes"])
        self.number = {k: i for i, k in enumerate(QWERTY.keys)}
        self.window = torch.hann_window(64)

    def read(self, a, b): return self.rows[a:b]

    def tensor(self, rows): return torch.as_tensor(np.stack([rows["emg_left"], rows["emg_right"]], axis=1))  # (T, 2, 16)

    def labels(self, start, end):
        found = []
        for stroke in self.strokes:
            if stroke["start"] > end: break
            if stroke["start"] >= start and stroke["key"] in self.number: found.append(self.number[stroke["key"]])
        return torch.tensor(found, dtype=torch.int32)

    def augment(self, x, rng):
        x = torch.stack([x[:, band].roll(int(rng.integers(-1, 2)), -1) for band in range(2)], 1)
        d = int(rng.integers(-120, 121))
        left, right = (x[d:, 0], x[:len(x) - d, 1]) if d >= 0 else (x[:d, 0], x[-d:, 1])
        return torch.stack([left, right], 1)

    def spectrogram(self, x):
        s = torch.stft(x.movedim(0, -1).reshape(32, -1), 64, 16, window=self.window, center=False, return_complex=True)
        return torch.log10(s.abs() ** 2 + 1e-6).reshape(2, 16, 33, -1).movedim(-1, 0)  # (T', 2, 16, 33)

    def mask(self, s, rng):
        for band in range(2):
            for channel in range(16):
                for _ in range(rng.integers(0, 4)):
                    w = rng.random() * 25
                    at = int(rng.random() * (len(s) - w))
                    s[at:at + int(w), band, channel] = 0
                for _ in range(rng.integers(0, 3)):
                    w = rng.random() * 4
                    at = int(rng.random() * (33 - w))
                    s[:, band, channel, at:at + int(w)] = 0
        return s

    def example(self, read, core, rng):
        rows = self.read(*read)
        first = core[0] - read[0]
        times = rows["time"]
        labels = self.labels(times[first], times[first + core[1] - core[0] - 1])
        return self.mask(self.spectrogram(self.augment(self.tensor(rows), rng)), rng), labels


def collate(examples): return torch.nn.utils.rnn.pad_sequence(examples), torch.tensor([len(e) for e in examples], dtype=torch.int32)


def compare(jobs, repeats, n_windows):
    "Milliseconds per window of several jobs, run in turn."
    seconds = {name: [] for name in jobs}
    for k in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            result = job()
            if k: seconds[name].append(time.perf_counter() - start)
            del result
    return {name: 1000 * statistics.median(s) / n_windows for name, s in seconds.items()}


def measure(session, folder, repeats):
    "Milliseconds per window of both ways on one file."
    index = WindowIndex([whole(session)], SPEC, QWERTY, jitter=True)
    stores = {"auto": SignalStore([session], cache_dir=folder), "ram": SignalStore([session], "ram"), "resident": SignalStore([session], "device")}
    windows, slow = WindowSet(stores["auto"], index), PerWindow(session)
    numbers = np.random.default_rng(0).choice(len(index), BATCH, replace=False)
    plan = index.plan(numbers, make_generator(0))
    spans = list(zip(zip(plan.read_start.tolist(), plan.read_stop.tolist()), zip(plan.core_start.tolist(), plan.core_stop.tolist())))
    ends = [(slow.rows[a]["time"], slow.rows[b - 1]["time"]) for _, (a, b) in spans]
    ours = index.labels(plan)[0]
    for row, (start, end) in zip(ours, ends):
        theirs = slow.labels(start, end).numpy()
        assert (row[:len(theirs)] == theirs).all()
    assert np.array_equal(windows.store.gather([0], *([x] for x in spans[0][0]))[0][0].numpy(), slow.tensor(slow.read(*spans[0][0])).numpy())

    def full(rng=np.random.default_rng(1)):
        examples = [slow.example(read, core, rng) for read, core in spans]
        return collate([e for e, _ in examples]), collate([t for _, t in examples])

    where = np.zeros(BATCH, np.int64)
    jobs = {
        "pipeline: complete, per window": full,
        "pipeline: h5py slice only": lambda: [slow.read(*read) for read, _ in spans],
        "pipeline: h5py slice, tensor, stacking": lambda: collate([slow.tensor(slow.read(*read)) for read, _ in spans]),
        "pipeline: label scan, stacking": lambda: collate([slow.labels(*e) for e in ends]),
        "store: raw batch": lambda: stores["auto"].gather(where, plan.read_start, plan.read_stop),
        "store: raw batch, ram": lambda: stores["ram"].gather(where, plan.read_start, plan.read_stop),
        "store: raw batch, resident on this CPU": lambda: stores["resident"].gather(where, plan.read_start, plan.read_stop),
        "index: labels of a batch": lambda: index.labels(plan),
        "window set: plan, raw batch, labels": lambda: windows.batch(numbers, make_generator(0)),
    }
    return stores["auto"].placement_of[session.name], compare(jobs, repeats, BATCH), epoch_rate(windows)


def epoch_rate(windows):
    "Windows per second of a whole epoch through the loader, the batch thrown away."
    loader = WindowLoader(windows, BATCH, shuffle=True)
    rates = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        for _ in loader: pass
        rates.append(len(windows) / (time.perf_counter() - start))
    return statistics.median(rates)


def ratios(ms):
    "The comparisons that the project promises, and the ones a sceptic asks for."
    pairs = {
        "raw windows: complete pipeline / store": ("pipeline: complete, per window", "store: raw batch"),
        "raw windows: slice, tensor, stacking / store": ("pipeline: h5py slice, tensor, stacking", "store: raw batch"),
        "raw windows: slice alone / store": ("pipeline: h5py slice only", "store: raw batch"),
        "raw windows and labels: complete pipeline / window set": ("pipeline: complete, per window", "window set: plan, raw batch, labels"),
        "labels: scan and stacking / index": ("pipeline: label scan, stacking", "index: labels of a batch"),
    }
    return {name: round(ms[a] / ms[b], 2) for name, (a, b) in pairs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {"minutes": options.minutes, "batch": BATCH, "window": [SPEC.length, SPEC.left_context, SPEC.right_context], "threads": 1, "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, compression in (("contiguous", None), ("gzip", "gzip")):
            session = write_noise(Path(folder), name, options.minutes, 0, compression)
            placement, ms, rate = measure(session, folder, options.repeats)
            report["files"][name] = {"placement": placement, "ms_per_window": {k: round(v, 5) for k, v in ms.items()}, "ratios": ratios(ms), "loader_windows_per_s": round(rate)}
            print(f"\n{name} file, placement {placement}, {options.minutes:g} min, ms per window:")
            for k, v in ms.items(): print(f"  {v:10.4f}  {k}")
            for k, v in ratios(ms).items(): print(f"  {v:9.1f}x  {k}")
            print(f"  {rate:10.0f}  windows per second through the loader")
            session.path.unlink()
    report["provenance"] = provenance(device="cpu")
    path = Path(__file__).parent / "results" / "loading.json"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
