"""Draws nbs/images/way.png, the picture of the front page, from a published run and the simulated session it was tested on."""
import io
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from semgbook.charset import get_charset  # noqa: E402
from semgbook.features import LogSpectrogram  # noqa: E402
from semgbook.figures import decoded_times  # noqa: E402
from semgbook.metrics import align  # noqa: E402
from semgbook.session import open_session, read_signal  # noqa: E402
from semgbook.synthetic import embedded_corpus  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "reports" / "published" / "e12-tds_decoded_embedded-s0-c9001a82"
LEFT, RIGHT, WRONG, LINE = "#0072B2", "#D55E00", "#CC3311", "#999999"


def start_of(session, press_times):
    "The sample at which the stretch begins whose key presses these are, in seconds from its beginning."
    presses = np.asarray(session.press_times) - session.first_time
    n = len(press_times)
    starts = [presses[i] - press_times[0] for i in range(len(presses) - n + 1) if np.abs(np.diff(presses[i:i + n]) - np.diff(press_times)).max() < 2 / session.rate_hz]
    if len(starts) != 1:
        raise SystemExit(f"{session.name}: these key presses occur {len(starts)} times in it, not once: is the corpus the one that the run saw?")
    return int(round(starts[0] * session.rate_hz))


def draw_signal(axes, signal, rate_hz):
    "Every electrode a line, the left band above the right one."
    seconds, step = np.arange(len(signal)) / rate_hz, 6 * np.median(np.abs(signal))
    for row in range(32):
        axes.plot(seconds, signal[:, row // 16, row % 16] - (row + row // 16) * step, lw=0.25, color=(LEFT, RIGHT)[row // 16], rasterized=True)
    axes.set_yticks([-7.5 * step, -24.5 * step], ["left\n16 electrodes", "right\n16 electrodes"])
    axes.set_ylim(-34 * step, 3 * step)


def draw_spectrogram(axes, signal, rate_hz):
    "The right band's log spectrogram, mean over its electrodes."
    import torch
    front = LogSpectrogram(n_fft=64, hop=16)
    with torch.no_grad():
        frames = front(torch.from_numpy(signal)[None])[0][:, 1].mean(1).numpy()  # (T, F)
    low, high = np.percentile(frames, [2, 99.7])
    axes.imshow(frames.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, len(signal) / rate_hz, 0, rate_hz / 2000))
    axes.set_ylabel("frequency (kHz)")


def draw_emissions(axes, example, names):
    "Probability of the keys that occur, and the text above: typed, then read."
    reference, prediction = str(example["reference"]), str(example["prediction"])
    log_probs, times = example["log_probs"].astype(np.float32), example["frame_times"]
    rows = sorted({names.index(c) for c in reference + prediction})
    axes.imshow(np.exp(log_probs[:, rows]).T, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(times[0], times[-1], -0.5, len(rows) - 0.5))
    axes.set_yticks(range(len(rows)), [{" ": "space"}.get(names[k], names[k]) for k in rows], fontsize=7)
    edits = align(reference, prediction)
    read_at = decoded_times(log_probs, times, names, prediction)
    for height, text, at, wrong in ((1.16, reference, example["press_times"], [e.kind != "same" for e in edits if e.reference]),
                                    (1.04, prediction, read_at, [e.kind != "same" for e in edits if e.prediction])):
        for character, second, bad in zip(text, at, wrong, strict=True):
            axes.text(second, height, {" ": "␣"}.get(character, character), transform=axes.get_xaxis_transform(), ha="center", family="DejaVu Sans Mono",
                      fontsize=10, color=WRONG if bad else "black", weight="bold" if bad else "normal")
    for height, what in ((1.16, "typed"), (1.04, "read")):
        axes.text(-0.008, height, what, transform=axes.transAxes, ha="right", fontsize=9)


def draw():
    "The picture."
    example = np.load(RUN / "examples.npz")
    session = open_session(embedded_corpus(ROOT / "data" / "synthetic" / "embedded") / f"{example['session']}.hdf5")
    start = start_of(session, example["press_times"])
    n = int((example["frame_times"][-1] + 0.05) * session.rate_hz)
    signal = read_signal(session, start, min(start + n, session.n_samples)).astype(np.float32)
    fig, (top, middle, bottom) = plt.subplots(3, 1, figsize=(9, 7.4), sharex=True, height_ratios=(2.2, 1, 2.2), constrained_layout=True)
    draw_signal(top, signal, session.rate_hz)
    draw_spectrogram(middle, signal, session.rate_hz)
    names = [*get_charset(str(example["charset"])).chars, "blank"]
    draw_emissions(bottom, example, names)
    for axes in (top, middle, bottom):
        axes.vlines(example["press_times"], *axes.get_ylim(), color="white" if axes is middle else LINE, lw=0.6, alpha=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    top.set_title("two wristbands (simulated)", loc="left", fontsize=10)
    middle.set_title("log spectrogram of the right band, mean of its electrodes", loc="left", fontsize=10)
    bottom.set_title("probability of each key", loc="left", fontsize=10, pad=38)
    bottom.set_xlabel("time (s); lines: key presses; red: errors")
    bottom.set_xlim(0, len(signal) / session.rate_hz)
    target = ROOT / "nbs" / "images" / "way.png"
    target.parent.mkdir(exist_ok=True)
    fig.savefig(drawn := io.BytesIO(), dpi=100)
    plt.close(fig)
    Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(target, optimize=True)  # a third of the bytes, the same to the eye
    return target


if __name__ == "__main__":
    print("drawn:", draw())
