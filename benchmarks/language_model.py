"""Reading an ARPA file and estimating a model against plain loops, and the memory of each.

    python benchmarks/language_model.py [--words 150000] [--rounds 3]

The text is drawn from the embedded letter model of order 2, so that it has a great many different six-grams. Reading is set against a loop over lines
that fills a dictionary per order; estimating the counts against a Counter over all windows. Both ways must find the same n-grams. Ways run turn about
in one process, ratios are medians of pair-wise ratios. Peak memory is that of a fresh process which reads the file, less what it took
before. Leaves benchmarks/results/language_model.json.
"""
import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from semgbook.language_files import read_arpa, write_arpa
from semgbook.language_model import BOS, EOS, count_ngrams, draw_lines, embedded_language_model, encode_sentences, train_ngrams
from semgbook.repro import atomic_write, device_name, numpy_generator

PEAK = """
from semgbook.language_files import read_arpa
def memory(what): return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])
before = memory("VmRSS")
{}
print(memory("VmHWM") - before)
"""  # kilobytes, on Linux


def read_with_a_loop(path):
    "One line after the other into a dictionary per order: what one would write first."
    orders = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.startswith("\\") and line.rstrip().endswith("-grams:"): orders.append({})
            elif orders and "\t" in line:
                log10, gram, *backoff = line.rstrip("\n").split("\t")
                orders[-1][tuple(gram.split(" "))] = float(log10), float(backoff[0]) if backoff else 0.0
    return orders


def count_with_a_loop(words, order):
    "A Counter over the windows of every word, for each order."
    counts = [Counter() for _ in range(order)]
    for word in words:
        line = (BOS, *word, EOS)
        for n in range(1, order + 1): counts[n - 1].update(line[i:i + n] for i in range(len(line) - n + 1))
    return counts


def turn_about(ways, rounds):
    "Seconds of each way in each round, and what each gave last."
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - begin)
    return seconds, results


def summary(seconds, slow, fast, millions):
    return dict(seconds_per_million_ngrams={name: round(statistics.median(s) / millions, 3) for name, s in seconds.items()},
                times_faster=round(statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 1))


def peak_mb(code):
    done = subprocess.run([sys.executable, "-c", PEAK.format(code)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "language_model.json")
    args = parser.parse_args()
    words = ["".join(line) for line in draw_lines(embedded_language_model(2), args.words, numpy_generator(0, "benchmark"))]
    model = train_ngrams(words, 6)
    millions = sum(model.n_ngrams) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        path = write_arpa(model, Path(folder) / "six.arpa")
        reading, read = turn_about(dict(loop=lambda: read_with_a_loop(path), read_arpa=lambda: read_arpa(path)), args.rounds)
        assert tuple(map(len, read["loop"])) == read["read_arpa"].n_ngrams
        begin = time.perf_counter()
        read["read_arpa"].table()
        table_s = time.perf_counter() - begin
        peaks = dict(read_arpa=peak_mb(f"read_arpa({str(path)!r})"), read_arpa_and_table=peak_mb(f"read_arpa({str(path)!r}).table()"))
        size = path.stat().st_size / 2**20
    counting, counted = turn_about(dict(loop=lambda: count_with_a_loop(words, 6), numpy=lambda: (lambda s, *text: count_ngrams(s, *text, 6))(*encode_sentences(words))), args.rounds)
    assert [len(c) for c in counted["loop"]][1:] == [len(c.key) for c in counted["numpy"]][1:]
    results = dict(machine=dict(platform=platform.platform(), device=device_name("cpu")),
                   model=dict(words=len(words), n_ngrams=model.n_ngrams, file_mb=round(size, 1)),
                   reading=summary(reading, "loop", "read_arpa", millions), table_seconds_per_million_ngrams=round(table_s / millions, 3),
                   peak_mb_per_million_ngrams={name: round(mb / millions, 1) for name, mb in peaks.items()},
                   counting=summary(counting, "loop", "numpy", millions))
    print(json.dumps(results, indent=2))
    atomic_write(Path(args.output), json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
