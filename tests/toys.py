"A toy corpus that trains in seconds, keys a, b and c as bursts on electrodes 0, 5 and 10; and a toy language model of a and b."
import json
from types import SimpleNamespace

import numpy as np
import torch

from semgbook.ctc import Emissions
from semgbook.language_files import spell
from semgbook.recipes import override, preset
from semgbook.runs import carry_out, start_run
from semgbook.session import write_session

STEADY = dict(augment__alignment_jitter=0, augment__rotation=0, augment__n_time_masks=0, augment__n_freq_masks=0, training__device="cpu", training__decode_train_every=1,
              training__epochs=3, optimiser__lr=0.01, optimiser__warmup=0.2)  # nothing is drawn, and every batch is read

TINY_ARPA = """\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-2\t<unk>
-99\t<s>\t-0.30103
-0.69897\t</s>
-0.30103\ta\t-0.60206
-0.5376\tb\t0

\\2-grams:
-0.1249387\t<s> a\t-0.1
-0.2218487\ta b\t-0.2
-0.30103\tb </s>
-0.9\ta a

\\3-grams:
-0.05\t<s> a b
-0.15\ta b </s>

\\end\\
"""


def toy_corpus(folder, n_sessions=3, seconds=24.0, rate=500.0, users=("toy",), presses=True):
    "Write sessions of bursts; one user after another."
    folder.mkdir(exist_ok=True, parents=True)
    for index in range(n_sessions):
        rng = np.random.default_rng(index)
        signal, at = rng.normal(0, 1, (int(seconds * rate), 2, 16)).astype(np.float32), np.arange(0.6, seconds - 1, 0.55) if presses else np.zeros(0)
        which = rng.integers(0, 3, len(at))
        for t, k in zip(at, which): signal[int((t - 0.05) * rate):int((t + 0.1) * rate), k % 2, 5 * k] *= 12
        times = 1.6e9 + np.arange(len(signal)) / rate
        write_session(folder / f"toy-{index}.hdf5", signal, times, ["abc"[k] for k in which], times[0] + at, times[0] + at + 0.1,
                      name=f"toy-{index}", user=users[index % len(users)], rate_hz=rate)
    return folder


def toy_recipe(corpus, **changes):
    "A recipe for the toy corpus; dotted places with __ for dots."
    base = {"name": "toy", "data.corpus": str(corpus), "data.users": [], "data.window_s": 2.0, "training.epochs": 3, "training.batch_size": 4,
            "encoder": "norm mlp(features=16) tds:1(channels=4,kernel=8)", "augment.alignment_jitter": 10, "augment.rotation": 1}
    return override(preset("tds_embedded"), base | {k.replace("__", "."): v for k, v in changes.items()})


def two_users(folder, seconds=64.0, val_fraction=0.1, **changes):
    "Recipe of a corpus in which two users train and a third one tests."
    toy_corpus(folder, n_sessions=3, seconds=seconds, users=("ann", "bob", "eve"))
    return toy_recipe(folder, data__split="fraction", data__split_options={"test_users": ["eve"], "val_fraction": val_fraction}, training__epochs=1, **changes)


def carried_out(recipe, root):
    "The folder of a run that was carried out without bars."
    run = start_run("e99", recipe, root)
    carry_out(run, print)
    return run.folder


def arpa_writer(folder):
    "A function that writes a language model, by itself the toy one, and returns its path."
    def to_file(text=TINY_ARPA, name="tiny.arpa"):
        path = folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return to_file


def rows(model):
    "Text of each n-gram -> log10 and backoff."
    return {text: (float(p), float(b)) for grams, texts in zip(model.grams, spell(model)) for text, p, b in zip(texts, grams.log10, grams.backoff)}


def decoder_cases(shared):
    "Golden texts, and a function from a case's number to its emissions."
    cases = json.loads(shared("golden/decoders.json").read_text())
    arrays = np.load(shared("golden/decoders.npz"))
    return cases, lambda i: torch.from_numpy(arrays[f"emissions_{i}"])


def one(log_probs):
    "Emissions with a single example."
    return Emissions(log_probs[None], torch.tensor([len(log_probs)]))


def check(decoded, expected):
    "A golden text with its labels and frames."
    assert decoded.text == expected["text"]
    assert decoded.labels.tolist() == expected["labels"]
    assert decoded.frames.tolist() == expected["timestamps"]


def model_cases(shared):
    "Golden input, output and tensors of the published model; frames are (N, T, B, C, F)."
    cases, keys = (json.loads(shared(f"golden/model_{what}.json").read_text()) for what in ("cases", "keys"))
    frames = np.load(shared("golden/model_input.npz"))["input_int8"] * np.float32(cases["input_scale"])
    return SimpleNamespace(cases=cases, keys=keys, tensors={t["key"]: t["shape"] for t in keys["tensors"]},
                           frames=torch.tensor(frames).transpose(0, 1), lengths=torch.tensor(cases["input_lengths"]),
                           expected={k: torch.tensor(v) for k, v in np.load(shared("golden/model_expected.npz")).items()})
