"""From session files to augmented log spectrograms on the CPU: batched, against one window at a time.

    python benchmarks/front_end.py [--minutes 5] [--repeats 9] [--threads 1 2]

Both ways run in this process with the same number of threads, turn about, on the same windows of noise sessions in a temporary folder;
ratios are medians of pair-wise ratios. Processor time is given too, since it tells more on a machine that others use. The per-window way is the usual data set with transforms: an HDF5 slice, a scan of the
session's list of key presses, rotation, jitter, torch.stft, masks, then a collate that pads and stacks. Its masks are vectorised
over electrodes, as good code of that kind does. With 2 threads it also runs as two workers with one thread each, and the better counts.
Threads wait asleep (OMP_WAIT_POLICY=passive) in both ways: waiting awake, the default, makes 2 threads up to ten times slower than 1
as soon as another process wants a core. Before timing, both ways must agree on spectrograms and labels with augmentation off. Results: benchmarks/results/front_end.json.
"""
import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read once, when torch is loaded

import h5py
import numpy as np
import torch
import torch.nn.functional as F

from semgbook.augment import AugmentSettings, RawAugment, SpectralAugment
from semgbook.features import LogSpectrogram, dft_matrices, power_by_fft, zero_padding
from semgbook.session import open_session, write_session
from semgbook.store import SignalStore

WINDOW, LEFT, RIGHT = 8000, 1800, 200  # samples
BASELINE = AugmentSettings(rotation=1, alignment_jitter=120, n_time_masks=3, n_freq_masks=2)
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def write_sessions(folder, n, minutes, rng):
    "Noise sessions with 4.3 key presses a second, the pace of the real logs."
    for i in range(n):
        samples = int(minutes * 60 * 2000)
        times = 1.6e9 + 1e6 * i + np.arange(samples) / 2000
        presses = np.sort(rng.uniform(times[0], times[-1], int(minutes * 60 * 4.3)))
        write_session(folder / f"noise_{i}.hdf5", rng.standard_normal((samples, 2, 16), np.float32) * 5, times,
                      rng.choice(LETTERS, len(presses)).tolist(), presses, presses + 0.1, name=f"noise_{i}", user=f"user_{i}")
    return sorted(folder.glob("*.hdf5"))


# ---- one window at a time

class PerWindow:
    "The usual data set: each window is read, labelled and transformed by itself."

    def __init__(self, paths, generator):
        self.files = [h5py.File(p, "r", locking=False)["emg2qwerty"] for p in paths]
        self.presses = [json.loads(f.attrs["keystrokes"]) for f in self.files]
        self.window, self.generator, self.training = torch.hann_window(64), generator, True

    def labels(self, i, start_t, end_t):
        found = []
        for press in self.presses[i]:
            if press["start"] > end_t: break
            if press["start"] >= start_t: found.append(LETTERS.index(press["key"]))
        return torch.tensor(found, dtype=torch.int32)

    def rotate_and_jitter(self, x):
        for band in range(2): x[:, band] = x[:, band].roll(int(torch.randint(-1, 2, (), generator=self.generator)), -1)
        d = int(torch.randint(-120, 121, (), generator=self.generator))
        left, right, n = x[:, 0], x[:, 1], len(x) - abs(d)
        return torch.stack([left[max(d, 0):][:n], right[max(-d, 0):][:n]], 1)

    def spectrogram(self, x):  # (T, 2, 16) -> (T', 2, 16, 33)
        spectrum = torch.stft(x.movedim(0, -1).flatten(0, 1), 64, 16, 64, self.window, center=False, normalized=False, return_complex=True)
        power = spectrum.abs().pow(2) / 24
        return torch.log10(power.unflatten(0, (2, 16)).permute(3, 0, 1, 2) + 1e-6)

    def mask(self, x, axis, size, most, limit):
        place = torch.arange(size)
        for _ in range(int(torch.randint(most + 1, (), generator=self.generator))):
            width = torch.rand(2, 16, 1, generator=self.generator) * limit
            start = (torch.rand(2, 16, 1, generator=self.generator) * (size - width)).long()
            hidden = (place >= start) & (place < start + width.long())  # (2, 16, size)
            x = x.masked_fill(hidden.permute(2, 0, 1)[..., None] if axis == 0 else hidden[None], 0.0)
        return x

    def __getitem__(self, key):
        i, offset = key
        first, last = max(offset - LEFT, 0), offset + WINDOW + RIGHT
        samples = self.files[i]["timeseries"][first:last]
        core = samples["time"][offset - first:][:WINDOW]
        labels = self.labels(i, core[0], core[-1])
        x = torch.stack([torch.as_tensor(samples["emg_left"]), torch.as_tensor(samples["emg_right"])], 1)
        if self.training: x = self.rotate_and_jitter(x)
        x = self.spectrogram(x)
        if self.training: x = self.mask(self.mask(x, 0, len(x), 3, 25), 3, 33, 2, 4)
        return x, labels

    def batch(self, windows, workers=None):
        items = list(workers.map(self.__getitem__, windows) if workers else map(self.__getitem__, windows))
        frames, labels = zip(*items, strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(frames), pad(labels), torch.tensor([len(f) for f in frames]), torch.tensor([len(x) for x in labels])


# ---- a batch at once

class Batched:
    "Gather raw windows, find labels by binary search, then transform the whole batch."

    def __init__(self, paths, generator):
        sessions = [open_session(p) for p in paths]
        self.store, self.generator = SignalStore(sessions, placement="mmap"), generator
        self.length, self.times = [s.n_samples for s in sessions], [h5py.File(p, "r", locking=False)["emg2qwerty/timeseries"]["time"] for p in paths]
        self.presses = [s.press_times for s in sessions]
        self.ids = [np.array([LETTERS.index(k) for k in s.keys], np.int32) for s in sessions]
        self.raw, self.front_end, self.spectral = RawAugment(BASELINE), LogSpectrogram(), SpectralAugment(BASELINE)

    def labels(self, i, offset):
        a = np.searchsorted(self.presses[i], self.times[i][offset], "left")
        return torch.from_numpy(self.ids[i][a:np.searchsorted(self.presses[i], self.times[i][offset + WINDOW - 1], "right")])

    def stages(self, windows):
        "The batch, and the seconds of each stage."
        clock, marks = time.perf_counter, [time.perf_counter()]
        sessions, offsets = np.array(windows).T
        stops = np.minimum(offsets + WINDOW + RIGHT, np.array(self.length)[sessions])
        x, lengths = self.store.gather(sessions, np.maximum(offsets - LEFT, 0), stops); marks.append(clock())
        labels = [self.labels(i, o) for i, o in windows]
        targets, counts = torch.nn.utils.rnn.pad_sequence(labels, True), torch.tensor([len(x) for x in labels]); marks.append(clock())
        x, lengths = self.raw(x, lengths, self.generator); marks.append(clock())
        frames, lengths = self.front_end(x), self.front_end.out_lengths(lengths); marks.append(clock())
        frames = self.spectral(zero_padding(frames, lengths), lengths, self.generator); marks.append(clock())
        return (frames, targets, lengths, counts), dict(zip(("gather", "labels", "raw_augment", "front_end", "spectral_augment"), np.diff(marks).tolist(), strict=True))

    def batch(self, windows): return self.stages(windows)[0]

    def train(self, on):
        self.raw.train(on), self.spectral.train(on)


# ---- candidates for the transform alone

def by_stft(x):
    spectrum = torch.stft(x.permute(0, 2, 3, 1).flatten(0, 2), 64, 16, 64, torch.hann_window(64), center=False, return_complex=True)
    return (spectrum.abs().pow(2) / 24 + 1e-6).log10().unflatten(0, x.shape[:1] + x.shape[2:]).permute(0, 4, 1, 2, 3)


def by_fft(x): return power_by_fft(x, 64, 16).add_(1e-6).log10_()


def by_fft_in_tiles(x): return torch.cat([by_fft(example[None]) for example in x])


def by_gathered_matmul(x):
    y = x.unfold(1, 64, 16) @ torch.cat(dft_matrices(64), 1)
    y.square_()
    return (y[..., :33] + y[..., 33:]).add_(1e-6).log10_()


def by_convolution(x):
    y = F.conv1d(x.permute(0, 2, 3, 1).reshape(-1, 1, x.shape[1]), torch.cat(dft_matrices(64), 1).T[:, None], stride=16).square_()
    return (y[:, :33] + y[:, 33:]).add_(1e-6).log10_().unflatten(0, x.shape[:1] + x.shape[2:]).permute(0, 4, 1, 2, 3)


def by_hop_blocks(x):
    "Each block of 16 samples times its quarter of the matrix, for the four frames it is part of; then four products are added."
    matrix = torch.cat(dft_matrices(64), 1).view(4, 16, 66).transpose(0, 1).reshape(16, 264)
    n, hops = len(x), x.shape[1] // 16
    y = (x[:, :hops * 16].reshape(n, hops, 16, 32).transpose(2, 3) @ matrix).view(n, hops, 32, 4, 66)
    y = sum(y[:, q:hops - 3 + q, :, q] for q in range(1, 4)).add_(y[:, :hops - 3, :, 0]).square_()
    return (y[..., :33] + y[..., 33:]).add_(1e-6).log10_().unflatten(2, x.shape[2:])


CANDIDATES = {"torch.stft": by_stft, "gathered frames, fft": by_fft, "the same, one example at a time": by_fft_in_tiles,
              "gathered frames, one matrix product": by_gathered_matmul, "strided convolution": by_convolution, "hop blocks, products added": by_hop_blocks,
              "overlapping frames in place, matrix products (used)": LogSpectrogram()}


def power_error(a, b):
    "The golden vectors' measure: largest |P - P'| / sqrt(P E), E the energy of the frame; at most 2e-6."
    p, q = (10 ** v.double() for v in (a, b))
    return ((p - q).abs() / (p * p.sum(-1, keepdim=True)).sqrt()).max().item()


def exact(x):
    spectrum = torch.fft.rfft(x.double().unfold(1, 64, 16) * torch.hann_window(64, dtype=torch.float64), dim=-1)
    return (spectrum.abs().square() / 24 + 1e-6).log10()


def turn_about(ways, repeats):
    "Wall and processor seconds of each way, alternating; the first round does not count."
    seconds = {name: [] for name in ways}
    for r in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter(), time.process_time()
            way()
            if r: seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return {name: list(zip(*s, strict=True)) for name, s in seconds.items()}  # two rows each: wall, processor


def faster(seconds, reference):
    "How many times `reference` takes what `batched` takes, wall and processor: medians of pair-wise ratios."
    return [statistics.median(a / b for a, b in zip(s, t, strict=True)) for s, t in zip(seconds[reference], seconds["batched"], strict=True)]


def compare_candidates(threads, repeats, batch):
    torch.set_num_threads(threads)
    x = torch.randn(batch, LEFT + WINDOW + RIGHT, 2, 16, generator=torch.Generator().manual_seed(0)) * 5
    errors = {name: power_error(way(x[:1]), exact(x[:1])) for name, way in CANDIDATES.items()}
    seconds = turn_about({name: lambda way=way: way(x) for name, way in CANDIDATES.items()}, repeats)
    return {name: {"ms_per_window": 1e3 * statistics.median(s[0]) / batch, "power_error": errors[name]} for name, s in seconds.items()}


def check_equal(single, batched, windows):
    "With augmentation off, both ways give the same spectrograms, lengths and labels."
    single.training = False
    batched.train(False)
    (a, la, na, ma), (b, lb, nb, mb) = single.batch(windows), batched.batch(windows)
    assert torch.equal(na, nb) and torch.equal(ma, mb) and torch.equal(la.T, lb), "lengths or labels differ"
    worst = max(power_error(a[:n, i], b[i, :n]) for i, n in enumerate(na.tolist()))
    assert worst < 2e-6, f"spectrograms differ: {worst}"
    single.training = True
    batched.train(True)
    return worst


def compare_pipelines(paths, threads, repeats, batch, rng):
    torch.set_num_threads(threads)
    single, batched = (way(paths, torch.Generator().manual_seed(0)) for way in (PerWindow, Batched))
    n = min(batched.length)
    draw = lambda: [(int(i), int(o)) for i, o in zip(rng.integers(len(paths), size=batch), rng.integers(n - WINDOW, size=batch), strict=True)]
    worst = check_equal(single, batched, [(0, 0), (0, n - WINDOW), *draw()[2:]])
    windows, pool, stages = draw(), ThreadPoolExecutor(threads), []

    def workers():
        torch.set_num_threads(1)
        single.batch(windows, pool)
        torch.set_num_threads(threads)

    ways = {"per_window": lambda: single.batch(windows), "batched": lambda: stages.append(batched.stages(windows)[1])}
    if threads > 1: ways["per_window_in_workers"] = workers
    seconds = turn_about(ways, repeats)
    ratios = {name: faster(seconds, name) for name in ways if name != "batched"}
    wall, processor = (min(r[k] for r in ratios.values()) for k in range(2))  # against the better of the two
    return {"ms_per_window": {name: 1e3 * statistics.median(s[0]) / batch for name, s in seconds.items()}, "times_faster": wall,
            "times_less_processor_time": processor, "power_error": worst,
            "stage_ms_per_window": {k: 1e3 * statistics.median(s[k] for s in stages[1:]) / batch for k in stages[0]}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="of each session")
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "front_end.json")
    args, rng = parser.parse_args(), np.random.default_rng(0)
    result = {"what": __doc__.splitlines()[0], "machine": platform.processor() or platform.machine(), "torch": torch.__version__, "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
              "batch": args.batch, "minutes": args.minutes, "repeats": args.repeats, "load_before": os.getloadavg()[0],
              "pipeline": {}, "transform": {}}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_sessions(Path(folder), args.sessions, args.minutes, rng)
        for n in args.threads:
            result["pipeline"][str(n)] = compare_pipelines(paths, n, args.repeats, args.batch, rng)
            result["transform"][str(n)] = compare_candidates(n, min(args.repeats, 5), args.batch)
    result["load_after"] = os.getloadavg()[0]
    for n in map(str, args.threads):
        p = result["pipeline"][n]
        print(f"\n{n} thread(s): augmented log spectrograms {p['times_faster']:.2f} x faster (goal 3), {p['times_less_processor_time']:.2f} x less processor time; ms per window " + ", ".join(f"{k} {v:.2f}" for k, v in p["ms_per_window"].items()))
        print("  of which " + ", ".join(f"{k} {v:.2f}" for k, v in p["stage_ms_per_window"].items()))
        for name, t in result["transform"][n].items(): print(f"  {name:52} {t['ms_per_window']:6.2f} ms per window   power error {t['power_error']:.1e}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__": main()
