"A toy corpus that trains in seconds: keys a, b and c are bursts on electrodes 0, 5 and 10."
import numpy as np

from semgbook.recipes import override, preset
from semgbook.session import write_session


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
