"""How much faster windows are loaded from a store than by a per-window pipeline; ratios of one run, medians of alternating repeats.

Usage: OMP_NUM_THREADS=1 python benchmarks/loading.py [--minutes 15] [--repeats 7] [--batches 4]
The per-window pipeline is the usual one, written plainly: for every window an h5py slice, a scan of the session's key log from its start,
rotation and alignment jitter, torch.stft, spectrogram masks; then padding and stacking in Python. Both sides load the same windows, from
files in the page cache, with one thread; processor time is compared, which other jobs on the machine disturb least. Nothing is asserted; the numbers are printed and written to benchmarks/results/loading.json.
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
        self.file = h5py.File(session.path, locking=False)
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
    "Milliseconds of processor time per window of several jobs, run in turn: name to one value per repeat."
    spent = {name: [] for name in jobs}
    for k in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if k: spent[name].append(1000 * (time.process_time() - start) / n_windows)
    return spent


def measure(session, folder, repeats, n_batches):
    "Milliseconds per window of both ways on one file."
    index = WindowIndex([whole(session)], SPEC, QWERTY, jitter=True)
    stores = {"auto": SignalStore([session], cache_dir=folder), "ram": SignalStore([session], "ram"), "resident": SignalStore([session], "device")}
    windows, slow = WindowSet(stores["auto"], index), PerWindow(session)
    numbers = np.random.default_rng(0).choice(len(index), (n_batches, BATCH))
    plans = [index.plan(row, make_generator(0, k)) for k, row in enumerate(numbers)]
    spans = [list(zip(zip(p.read_start.tolist(), p.read_stop.tolist()), zip(p.core_start.tolist(), p.core_stop.tolist()))) for p in plans]
    ends = [[(slow.rows[a]["time"], slow.rows[b - 1]["time"]) for _, (a, b) in span] for span in spans]
    check_equal(stores["auto"], index, slow, plans[0], spans[0], ends[0])
    rng, where = np.random.default_rng(1), np.zeros(BATCH, np.int64)

    def complete(span):
        examples = [slow.example(read, core, rng) for read, core in span]
        return collate([e for e, _ in examples]), collate([t for _, t in examples])

    def every(function, *lists): return lambda: [len(function(*x)) for x in zip(*lists)]
    def gather(name): return lambda p: stores[name].gather(where, p.read_start, p.read_stop)
    jobs = {
        "pipeline: complete, per window": every(complete, spans),
        "pipeline: h5py slice only": every(lambda span: [len(slow.read(*read)) for read, _ in span], spans),
        "pipeline: h5py slice, tensor, stacking": every(lambda span: collate([slow.tensor(slow.read(*read)) for read, _ in span]), spans),
        "pipeline: label scan, stacking": every(lambda times: collate([slow.labels(*e) for e in times]), ends),
        "store: raw batch": every(gather("auto"), plans),
        "store: raw batch, ram": every(gather("ram"), plans),
        "store: raw batch, resident on this CPU": every(gather("resident"), plans),
        "index: labels of a batch": every(index.labels, plans),
        "window set: plan, raw batch, labels": every(lambda row: windows.batch(row, make_generator(0)), numbers),
    }
    return stores["auto"].placement_of[session.name], compare(jobs, repeats, n_batches * BATCH), epoch_rate(windows)


def check_equal(store, index, slow, plan, spans, ends):
    "Both ways load the same samples and the same labels."
    labels, lengths = index.labels(plan)
    for row, n, e in zip(labels, lengths, ends): assert row[:n].tolist() == slow.labels(*e).tolist()
    batch, lengths = store.gather(np.zeros(len(plan), int), plan.read_start, plan.read_stop)
    for row, n, (read, _) in zip(batch, lengths, spans): assert torch.equal(row[:n], slow.tensor(slow.read(*read)))


def epoch_rate(windows):
    "Windows per second of a whole epoch through the loader, by the clock on the wall; the batches are thrown away."
    loader, rates = WindowLoader(windows, BATCH, shuffle=True), []
    for epoch in range(5):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        for _ in loader: pass
        rates.append(len(windows) / (time.perf_counter() - start))
    return statistics.median(rates)


def ratios(ms):
    "The comparisons that the project promises, and the ones a sceptic asks for: median of the ratios of each repeat."
    pairs = {
        "raw windows: complete pipeline / store": ("pipeline: complete, per window", "store: raw batch"),
        "raw windows: slice, tensor, stacking / store": ("pipeline: h5py slice, tensor, stacking", "store: raw batch"),
        "raw windows: slice alone / store": ("pipeline: h5py slice only", "store: raw batch"),
        "raw windows and labels: complete pipeline / window set": ("pipeline: complete, per window", "window set: plan, raw batch, labels"),
        "labels: scan and stacking / index": ("pipeline: label scan, stacking", "index: labels of a batch"),
    }
    return {name: round(statistics.median(x / y for x, y in zip(ms[a], ms[b])), 2) for name, (a, b) in pairs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {"minutes": options.minutes, "batch": BATCH, "window": [SPEC.length, SPEC.left_context, SPEC.right_context], "threads": 1, "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, compression in (("contiguous", None), ("gzip", "gzip")):
            session = write_noise(Path(folder), name, options.minutes, 0, compression)
            placement, ms, rate = measure(session, folder, options.repeats, options.batches)
            medians = {k: round(statistics.median(v), 5) for k, v in ms.items()}
            report["files"][name] = {"placement": placement, "cpu_ms_per_window": medians, "ratios": ratios(ms), "loader_windows_per_s": round(rate)}
            print(f"\n{name} file, placement {placement}, {options.minutes:g} min, ms of processor time per window:")
            for k, v in medians.items(): print(f"  {v:10.4f}  {k}")
            for k, v in ratios(ms).items(): print(f"  {v:9.1f}x  {k}")
            print(f"  {rate:10.0f}  windows per second through the loader")
            session.path.unlink()
    report["provenance"] = provenance(device="cpu")
    path = Path(__file__).parent / "results" / "loading.json"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
