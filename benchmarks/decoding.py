"""Greedy decoding of a batch against loops over its frames, and decoding plus error counting against the training step that made the batch.

    python benchmarks/decoding.py [--pairs 15] [--steps 3] [--batch 32] [--frames 498] [--threads 1] [--device auto]

Two kinds of emissions: "trained" has some 20 sharp peaks per window of four seconds, "untrained" is noise, in which nearly every frame begins
a new key. Two loops: the plain one takes the arg max frame by frame; the better one takes all arg max at once and then walks through the
labels in Python. All ways run turn about in one process and must give the same texts; ratios are medians of pair-wise ratios. The training
step is the full TDS model with its head (forward, CTC loss, backward, clipping, Adam) on frames that are already there, which is the least a step
can cost. On a shared machine processor time says more than the clock, so both are given. Leaves benchmarks/results/decoding.json.
"""
import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from semgbook.charset import QWERTY
from semgbook.ctc import CTCHead, Emissions, ctc_loss
from semgbook.encoders import build_encoder
from semgbook.greedy import best_classes, collapse, greedy_decode
from semgbook.metrics import count_errors_many, total_errors
from semgbook.repro import atomic_write, device_name, make_generator, pick_device

KEYS_PER_WINDOW = 20


def make_emissions(kind, n, frames, device):
    "Emissions (N, T, K) and the texts typed in them, with one error in ten for the trained kind."
    generator = make_generator(0, "decoding", kind)
    scores = torch.randn(n, frames, QWERTY.n_classes, generator=generator)
    labels = torch.randint(0, 26, (n, KEYS_PER_WINDOW), generator=generator)
    if kind == "trained":
        scores[:, :, QWERTY.blank] += 9
        onsets = torch.linspace(5, frames - 5, KEYS_PER_WINDOW).long()
        heard = torch.where(torch.rand(labels.shape, generator=generator) < 0.1, (labels + 1) % 26, labels)
        for k in range(2): scores[torch.arange(n)[:, None], onsets + k, heard] += 14
    return Emissions(scores.log_softmax(-1).to(device), torch.full((n,), frames, device=device)), [QWERTY.text_of_labels(row) for row in labels.numpy()]


def loop_over_frames(emissions):
    "One frame after the other, arg max included."
    texts = []
    for log_probs, length in zip(emissions.log_probs.cpu().numpy(), emissions.lengths.tolist(), strict=True):
        text, last = [], QWERTY.blank
        for frame in log_probs[:length]:
            best = int(frame.argmax())
            if best not in (last, QWERTY.blank): text.append(QWERTY.chars[best])
            last = best
        texts.append("".join(text))
    return texts


def loop_over_labels(emissions):
    "All arg max at once, then a walk through the labels."
    texts = []
    for labels, length in zip(emissions.log_probs.argmax(-1).tolist(), emissions.lengths.tolist(), strict=True):
        text, last = [], QWERTY.blank
        for best in labels[:length]:
            if best not in (last, QWERTY.blank): text.append(QWERTY.chars[best])
            last = best
        texts.append("".join(text))
    return texts


def decode_and_count(emissions, references):
    "What training does with a batch whose error rate it wants to know."
    return total_errors(count_errors_many(references, [d.text for d in greedy_decode(emissions, QWERTY)]))


def host_part(labels, lengths, references):
    "The same without the arg max: transfer, collapse, text, counts."
    texts = [QWERTY.text_of_labels(keys) for keys, _ in collapse(labels, lengths, QWERTY.blank)]
    return total_errors(count_errors_many(references, texts))


def timed(function, arguments, device):
    "Milliseconds on the clock and of this process."
    if device.type == "cuda": torch.cuda.synchronize()
    begin, busy = time.perf_counter(), time.process_time()
    function(*arguments)
    if device.type == "cuda": torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin), 1000 * (time.process_time() - busy)


def turn_about(ways, rounds, device):
    "Clock and processor milliseconds of each way in each round, after one round that does not count."
    times = [{name: timed(function, arguments, device) for name, (function, *arguments) in ways.items()} for _ in range(rounds + 1)][1:]
    return {name: {kind: [r[name][k] for r in times] for k, kind in enumerate(("clock", "processor"))} for name in ways}


def medians(times):
    return {name: {f"{kind}_ms": round(statistics.median(t), 3) for kind, t in by_kind.items()} | dict(best_ms=round(min(by_kind["clock"]), 3))
            for name, by_kind in times.items()}


def ratio(times, slow, fast, digits=2):
    "Median of pair-wise ratios, by the clock and by processor time."
    return {kind: round(statistics.median(a / b for a, b in zip(times[slow][kind], times[fast][kind], strict=True)), digits) for kind in ("clock", "processor")}


def measure_decoding(kind, args, device):
    emissions, references = make_emissions(kind, args.batch, args.frames, device)
    vectorised = [d.text for d in greedy_decode(emissions, QWERTY)]
    assert vectorised == loop_over_frames(emissions) == loop_over_labels(emissions), "the three ways must give the same texts"
    labels = best_classes(emissions.log_probs, QWERTY)
    times = turn_about(dict(vectorised=(greedy_decode, emissions, QWERTY), loop_over_frames=(loop_over_frames, emissions),
                            loop_over_labels=(loop_over_labels, emissions), decode_and_count=(decode_and_count, emissions, references),
                            host_part=(host_part, labels, emissions.lengths, references)), args.pairs, device)
    return dict(**medians(times), times_faster_than={name: ratio(times, name, "vectorised") for name in ("loop_over_frames", "loop_over_labels")},
                characters=sum(map(len, vectorised)), cer=round(decode_and_count(emissions, references).cer, 2))


def measure_step(precision, args, device):
    "Milliseconds of a training step, and of decoding and counting its own batch, turn about."
    encoder = build_encoder("tds", 2, 16, 33).to(device)
    head = CTCHead(encoder.out_features, QWERTY.n_classes).to(device)
    weights = [*encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(weights, 1e-3)
    frames = torch.randn(args.batch, args.frames + encoder.field - 1, 2, 16, 33, device=device)
    lengths = torch.full((args.batch,), frames.shape[1], device=device)
    labels = torch.randint(0, 26, (args.batch, KEYS_PER_WINDOW), device=device)
    label_lengths, references = torch.full((args.batch,), KEYS_PER_WINDOW, device=device), [QWERTY.text_of_labels(row) for row in labels.cpu().numpy()]
    kept = {}

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            kept["emissions"] = head(encoder(frames, lengths), encoder.out_lengths(lengths))
        loss, _ = ctc_loss(kept["emissions"], labels, label_lengths)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()

    times = turn_about(dict(step=(step,), decode_and_count=(lambda: decode_and_count(kept["emissions"], references),)), args.steps, device)
    return dict(**medians(times), steps_per_decode_and_count=ratio(times, "step", "decode_and_count", 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="rounds of decoding")
    parser.add_argument("--steps", type=int, default=3, help="training steps; 0: none")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=498, help="emissions of a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", default=Path(__file__).parent / "results" / "decoding.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    results = dict(machine=dict(platform=platform.platform(), device=device_name(device), threads=args.threads, torch=torch.__version__),
                   batch=dict(examples=args.batch, frames=args.frames, classes=QWERTY.n_classes))
    results["decoding"] = {kind: measure_decoding(kind, args, device) for kind in ("trained", "untrained")}
    if args.steps: results["training_step"] = {precision: measure_step(precision, args, device) for precision in ("fp32", "bf16")}
    print(json.dumps(results, indent=2))
    atomic_write(Path(args.output), json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
