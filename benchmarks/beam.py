"""Beam search of the package against a plain Python one: same texts, same scores, frames per second.

    python benchmarks/beam.py [--rounds 3] [--plain-frames 500] [--frames 4000] [--output FILE]

Beam 50, the ten best classes of a frame, and a model of six letters that is counted from words made of random syllables. "peaked" emissions
are sure of nearly every frame, as a trained model's are; "flat" ones are noise, in which no frame is sure of anything. The plain search keeps a
dictionary from texts (tuples of labels) to two sums, asks the language model through dictionaries too, and rebuilds everything in each frame, as
one would write it first. It reads a shorter piece (a window of four seconds; its texts are copied in each frame, so the ratio grows with the piece), both read that piece turn about, and the ratio is the median of pair-wise ratios. The search
of the package also reads a long piece, for its speed when warm. Compile seconds are those of a fresh process, once without and once with a cache
on disk. Processor time says more than the clock on a shared machine, so both are given. Leaves benchmarks/results/beam.json.
"""
import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch

from semgbook.charset import QWERTY
from semgbook.decoders import BeamDecoder, BeamSettings, NGramTable
from semgbook.repro import atomic_write, device_name, make_generator, numpy_generator, pick_device

FRAME_RATE = 125.0  # Hz


def make_words(n):
    "Pronounceable words, frequent ones short and rare ones long."
    rng = numpy_generator(0, "beam", "words")
    syllables = [c + v + e for c in ["", *"bcdfghjklmnprstvwz", "th", "sh", "st", "tr"] for v in "aeiou" for e in ["", "", "n", "r", "s", "t"]]
    return ["".join(rng.choice(syllables, 1 + min(int(rng.geometric(0.5)), 4))) for _ in range(n)]


def count_ngrams(words, n, pull=5.0):
    "Interpolated probabilities: n-gram -> log10 P(last | rest), history -> log10 back-off weight."
    seen = defaultdict(Counter)
    for word in words:
        s = ("<s>", *word, "</s>")
        for end in range(1, len(s)):
            for k in range(min(n, end + 1)): seen[s[end - k:end]][s[end]] += 1
    totals, prob = {h: sum(c.values()) for h, c in seen.items()}, {}
    unigrams = {*seen[()], "<unk>"}
    for history in sorted(seen, key=len):
        for w in (seen[history] if history else unigrams):
            lower = pull * prob[(*history[1:], w)] if history else 1.0
            prob[(*history, w)] = (seen[history][w] + lower) / (totals[history] + (pull if history else len(unigrams)))
    return {g: math.log10(p) for g, p in prob.items()}, {h: math.log10(pull / (totals[h] + pull)) for h in seen if h}


def make_table(ngrams, backoffs, n):
    "The same model as an automaton."
    symbols = tuple(sorted({w for g in ngrams for w in g} | {"<s>"}))
    states = sorted({(), *([("<s>",)] if n > 1 else []), *backoffs}, key=lambda h: (len(h), h))
    number, symbol, rows = {h: i for i, h in enumerate(states)}, {w: i for i, w in enumerate(symbols)}, [[] for _ in states]

    def known(history):
        while history not in number: history = history[1:]
        return number[history]

    for g, p in ngrams.items(): rows[number[g[:-1]]].append((symbol[g[-1]], p, known(g[-(n - 1):] if n > 1 else ())))
    flat = [arc for row in rows for arc in sorted(row)]
    return NGramTable(symbols, np.cumsum([0, *map(len, rows)]), np.array([a[0] for a in flat], np.int32), np.array([a[1] for a in flat], np.float32),
                      np.array([a[2] for a in flat], np.int32), np.array([backoffs.get(h, 0.0) for h in states], np.float32),
                      np.array([-1, *(known(h[1:]) for h in states[1:])], np.int32), known(("<s>",)), n)


class PlainModel:
    "A back-off model in dictionaries, asked with the whole history."
    def __init__(self, ngrams, backoffs, n):
        self.ngrams = {g: float(np.float32(p)) for g, p in ngrams.items()}
        self.backoffs = {h: float(np.float32(p)) for h, p in backoffs.items()}
        self.n, self.letters = n, {g[0] for g in ngrams if len(g) == 1}

    def score(self, word, w):
        "log10 P(w | the word so far)."
        history, total = (("<s>", *word)[-(self.n - 1):] if self.n > 1 else ()), 0.0
        while (*history, w) not in self.ngrams:
            if not history: return total + self.ngrams.get(("<unk>",), -100.0)
            total += self.backoffs.get(history, 0.0)
            history = history[1:]
        return total + self.ngrams[(*history, w)]


def add(x, y):
    if x < y: x, y = y, x
    return x if y == -math.inf else x + math.log1p(math.exp(y - x))


class PlainSearch:
    "Prefix beam search with a dictionary of texts, rebuilt in every frame."
    def __init__(self, charset, settings, lm=None):
        self.charset, self.settings, self.lm = charset, settings, lm
        self.backspace = charset.keys.index("Key.backspace") if "Key.backspace" in charset.keys else -1
        # text -> [sum of paths ending in a blank, ... in a key, onsets, terms and words that a backspace can undo, last term]
        self.beam, self.n_frames = {(): [0.0, -math.inf, (), ((0.0, ()),), 0.0]}, 0

    def extend(self, history, label):
        "The term of a new key, and the history after it: pairs of a term and the word that is open after its key."
        if label == self.backspace: return (-history[-1][0], history[:-1]) if len(history) > 1 else (0.0, history)
        if self.lm is None: return 0.0, (*history, (0.0, ()))
        word, key, s = history[-1][1], self.charset.keys[label], self.settings
        if key in self.lm.letters: score, after = self.lm.score(word, key), (*word, key)
        else: score, after = self.lm.score(word, "</s>") if word else self.lm.ngrams.get(("<unk>",), -100.0), ()
        term = s.lm_weight * score + s.insertion_bonus
        return term, (*history, (term, after))

    def push(self, log_probs):
        "Read frames (T, K)."
        blank, top = self.charset.blank, self.settings.top_classes
        for row in log_probs.double().tolist():
            classes = sorted(range(len(row)), key=lambda c: -row[c])[:top if top > 0 else None]
            found = {}
            for text, (p_blank, p_key, onsets, history, term) in self.beam.items():
                total = add(p_blank, p_key)
                mine = found.setdefault(text, [-math.inf, -math.inf, onsets, history, term])
                for c in classes:
                    if c == blank:
                        mine[0] = add(mine[0], total + row[c])
                        continue
                    repeats = bool(text) and text[-1] == c
                    if repeats: mine[1] = add(mine[1], p_key + row[c])
                    child = found.get((*text, c))
                    if child is None:
                        added, after = (self.beam[(*text, c)][4], self.beam[(*text, c)][3]) if (*text, c) in self.beam else self.extend(history, c)
                        child = found[(*text, c)] = [-math.inf, -math.inf, (*onsets, self.n_frames), after, added]
                    child[1] = add(child[1], (p_blank if repeats else total) + row[c] + child[4])
            ranked = sorted(found.items(), key=lambda item: -add(*item[1][:2]))  # stable
            self.beam = dict(ranked[:self.settings.beam])
            self.n_frames += 1

    def finish(self):
        "End the words that are open."
        for entry in self.beam.values():
            word = entry[3][-1][1]
            if self.lm is not None and word:
                added = self.settings.lm_weight * self.lm.score(word, "</s>")
                entry[0], entry[1] = entry[0] + added, entry[1] + added
        self.beam = dict(sorted(self.beam.items(), key=lambda item: -add(*item[1][:2])))

    def n_best(self, k):
        "(text, onsets, score), best first."
        return [(self.charset.text_of_labels(text), list(e[2]), add(e[0], e[1])) for text, e in list(self.beam.items())[:k]]


def make_emissions(kind, n_frames, words):
    "Log-probabilities (T, K) of someone who types words, or of noise."
    generator = make_generator(0, "beam", kind)
    scores = torch.randn(n_frames, QWERTY.n_classes, generator=generator)
    if kind == "peaked":
        labels = torch.as_tensor(QWERTY.labels_of_text(" ".join(words))).long()[:n_frames // 12]
        onsets = 12 * torch.arange(len(labels)) + 4
        wrong = torch.rand(len(labels), generator=generator) < 0.1
        scores[:, QWERTY.blank] += 9
        for k in range(2): scores[onsets + k, torch.where(wrong, (labels + 1) % 26, labels)] += 13
        scores[onsets, labels] += 9
    return scores.log_softmax(-1)


def timed(function, *arguments):
    "Seconds on the clock and of this process."
    begin, busy = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - begin, time.process_time() - busy


def compile_seconds():
    "Seconds of the first frame in a fresh process: with an empty cache folder, and again."
    code = ("import time, torch; from semgbook.decoders import BeamDecoder; d = BeamDecoder('qwerty'); x = torch.zeros(2, 99).log_softmax(-1)\n"
            "b, p = time.perf_counter(), time.process_time(); d.push(x); print(time.perf_counter() - b, time.process_time() - p)")
    with tempfile.TemporaryDirectory() as folder:
        runs = [subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_CACHE_DIR": folder}, check=True, capture_output=True, text=True).stdout.split()
                for _ in range(2)]
    return {name: dict(clock_s=round(float(c), 2), processor_s=round(float(p), 2)) for name, (c, p) in zip(("compiled", "from_cache"), runs, strict=True)}


def measure(kind, args, words, table, plain_model):
    long = make_emissions(kind, args.frames, words)
    short, settings = long[:args.plain_frames], BeamSettings()
    pairs = []
    for _ in range(args.rounds):
        plain, ours = PlainSearch(QWERTY, settings, plain_model), BeamDecoder(QWERTY, settings, table)
        pairs.append((timed(plain.push, short), timed(ours.push, short)))
    largest = 0.0
    for (text, onsets, score), decoded in zip(plain.n_best(50), ours.n_best(50), strict=True):
        assert (text, onsets) == (decoded.text, decoded.frames.tolist()), "the two searches must give the same texts and onsets"
        largest = max(largest, abs(score - decoded.score))
    assert largest < 1e-9, f"scores differ by {largest}"
    runs = {name: [timed(BeamDecoder(QWERTY, settings, lm).push, long) for _ in range(args.rounds)] for name, lm in (("lm", table), ("no_lm", None))}
    out = dict(plain_us_per_frame=round(1e6 * statistics.median(p[1] for p, _ in pairs) / len(short), 1),
               times_faster_than_plain={name: round(statistics.median(p[k] / o[k] for p, o in pairs), 1) for k, name in enumerate(("clock", "processor"))},
               largest_score_difference=largest, texts_compared=50)
    for name, times in runs.items():
        rate = {kind: args.frames / statistics.median(t[k] for t in times) for k, kind in enumerate(("clock", "processor"))}
        out[name] = dict(frames_per_s={k: round(r) for k, r in rate.items()}, times_real_time={k: round(r / FRAME_RATE) for k, r in rate.items()})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain-frames", type=int, default=500, help="frames that both searches read")
    parser.add_argument("--frames", type=int, default=4000, help="frames that the compiled search reads alone")
    parser.add_argument("--words", type=int, default=20000, help="words that the language model is counted from")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "beam.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    words = make_words(args.words)
    model = count_ngrams(words, 6)
    table, plain_model = make_table(*model, 6), PlainModel(*model, 6)
    BeamDecoder(QWERTY, lm=table).push(make_emissions("flat", 2, words))  # compiled before anything is timed
    results = dict(machine=dict(platform=platform.platform(), device=device_name(pick_device("cpu")), threads=1),
                   search=dict(beam=50, top_classes=10, classes=QWERTY.n_classes, ngram_order=6, states=len(table.backoff), arcs=len(table.arc_symbol)),
                   first_frame=compile_seconds())
    results |= {kind: measure(kind, args, words, table, plain_model) for kind in ("peaked", "flat")}
    print(json.dumps(results, indent=2))
    atomic_write(Path(args.output), json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
