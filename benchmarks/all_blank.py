"""How soon does a CTC model leave the phase in which it says nothing, or one and the same key? Steps until the validation CER is below 90 %.

    python benchmarks/all_blank.py [--seeds 0 1 2] [--steps 400] [--recipes tds_embedded bilstm_embedded] [--settings ...]

Narrow models on one simulated user. Every setting differs from "per step" in what its name says; "per step" is the baseline's optimiser (Adam at
1e-3, warm-up over 10 of 150 epochs) with the rate moved every step, blank bias 0. A run stops at the first evaluation below 90 % in which the
blank wins most frames, or at the step limit; the second condition is there because a model that types one frequent key all the time can come
below 90 % without having heard anything. All settings of a recipe are scored on the same leading validation windows, whatever they train on. Runs that
the output file already holds, with the same limit and the same way of looking, are kept, so settings and seeds can be added later.
A run is half a minute of one core, all of them most of an hour. Leaves benchmarks/results/all_blank.json.
"""
import argparse
import itertools
import json
import platform
import time
from pathlib import Path

import torch

from semgbook.ctc import ctc_loss
from semgbook.recipes import BASELINE, QUICK, override, preset
from semgbook.repro import atomic_write, make_generator, use_deterministic
from semgbook.training import build_model, build_optimiser, load_data, score_windows

CPU = torch.device("cpu")


def places(optimiser):
    "The optimiser of a recipe as dotted places."
    return {f"optimiser.{k}": getattr(optimiser, k) for k in ("name", "lr", "weight_decay", "schedule", "warmup", "clip")}


BASE = {**places(BASELINE), "training.epochs": 150, "blank_bias": 0.0}
CYCLE = {**places(QUICK), "training.epochs": 60}
SETTINGS = {  # name -> what differs from BASE; head_rate is a factor on the rate of the head's weights, beta2 Adam's memory of squared gradients
    "per epoch": {"optimiser.per_epoch": True},
    "per step": {},
    "bias -2": {"blank_bias": -2.0},
    "bias 4": {"blank_bias": 4.0},
    "clip": {"optimiser.clip": 1.0},
    "clip, bias 4": {"optimiser.clip": 1.0, "blank_bias": 4.0},
    "short memory": {"beta2": 0.99},  # a hundred steps instead of a thousand
    "head rate x 10": {"head_rate": 10.0},
    "rate 3e-3": {"optimiser.lr": 3e-3},
    "rate 3e-3, clip": {"optimiser.lr": 3e-3, "optimiser.clip": 1.0},
    "quick, bias -2": {**CYCLE, "blank_bias": -2.0},
    "quick, bias 0": CYCLE,
    "quick, bias 2": {**CYCLE, "blank_bias": 2.0},
    "quick, bias 4": {**CYCLE, "blank_bias": 4.0},
    "windows of 2 s": {"data.window_s": 2.0, "batch_factor": 2},  # twice as many, so a step sees as many seconds
}


def recipe_of(name, setting, seed):
    "The recipe of one run, and what a recipe cannot say: the factor on the rate of the head, and Adam's second beta."
    changes = {**BASE, **SETTINGS[setting], "training.seed": seed}
    head_rate, beta2, factor = changes.pop("head_rate", 1.0), changes.pop("beta2", 0.999), changes.pop("batch_factor", 1)
    return override(preset(name), {**changes, "training.batch_size": factor * preset(name).training.batch_size}), head_rate, beta2


def batches_of(data, seed):
    "Training batches without end, with the generator of their augmentation, as a run of that seed draws them."
    for epoch in itertools.count():
        data.train.set_epoch(epoch)
        generator = make_generator(seed, "augment", epoch)
        for batch in data.train: yield batch, generator


def look(model, windows, charset, args, step):
    "One row of the trace: what the model says on the validation windows."
    score = score_windows(model, windows, charset, CPU, args.batches)
    return dict(step=step, cer=round(score.counts.cer, 2), blank=round(score.blank, 4), loss=round(score.loss, 4),
                keys=sum(map(len, score.predictions)), distinct=len(set("".join(score.predictions))))


def has_left(row, args):
    "Whether the model reads: fewer errors than the limit, and not by typing one key in every frame."
    return row["cer"] < args.below and row["blank"] > args.silent


def train_until_it_speaks(name, setting, seed, windows, args):
    "One run: its trace, and the first evaluated step below the limit (None: not within the steps)."
    recipe, head_rate, beta2 = recipe_of(name, setting, seed)
    data = load_data(recipe)
    use_deterministic(seed)
    model = build_model(recipe, 2, data.n_channels)
    head = list(model.head.parameters())
    groups = [{"params": [p for n, p in model.named_parameters() if not n.startswith("head.")]}, {"params": head, "lr": head_rate * recipe.optimiser.lr}]
    n_per_epoch = len(data.train)
    chosen, schedule = build_optimiser(groups if head_rate != 1 else model.parameters(), recipe.optimiser, recipe.training.epochs * n_per_epoch, n_per_epoch)
    for group in chosen.param_groups: group["betas"] = (group["betas"][0], beta2)
    trace, busy = [look(model, windows, data.charset, args, 0)], time.process_time()
    for step, (batch, generator) in enumerate(itertools.islice(batches_of(data, seed), args.steps), 1):
        loss, _ = ctc_loss(model(batch.signal, batch.signal_lengths, generator, batch.contexts), batch.labels, batch.label_lengths)
        chosen.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.optimiser.clip: torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimiser.clip)
        chosen.step()
        schedule.step()
        if step % args.every: continue
        trace.append(look(model, windows, data.charset, args, step))
        if has_left(trace[-1], args): break
    left = step if has_left(trace[-1], args) else None
    return dict(recipe=name, setting=setting, seed=seed, left=left, steps_per_epoch=n_per_epoch, seconds=round(time.process_time() - busy, 1), trace=trace)


def stored_runs(output, way):
    "Runs already measured in the same way, by recipe, setting and seed."
    if not output.is_file(): return {}
    old = json.loads(output.read_text())
    return {(r["recipe"], r["setting"], r["seed"]): r for r in old["runs"]} if old["way"] == way else {}


def as_text(machine, way, runs):
    "JSON with one line per run, in the order of SETTINGS."
    place = list(SETTINGS)
    lines = [json.dumps(r) for r in sorted(runs.values(), key=lambda r: (r["recipe"], place.index(r["setting"]), r["seed"]))]
    return f'{{"machine": {json.dumps(machine)},\n"way": {json.dumps(way)},\n"runs": [\n' + ",\n".join(lines) + "\n]}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="give up after so many optimiser steps")
    parser.add_argument("--every", type=int, default=12, help="steps between two evaluations")
    parser.add_argument("--batches", type=int, default=2, help="validation batches per evaluation")
    parser.add_argument("--below", type=float, default=90.0, help="validation CER at which a run has left, %%")
    parser.add_argument("--silent", type=float, default=0.5, help="share of frames that the blank must win for that to count")
    parser.add_argument("--recipes", nargs="+", default=["tds_embedded", "bilstm_embedded"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), metavar="SETTING", help=f"one or more of: {', '.join(SETTINGS)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "all_blank.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    way = dict(steps=args.steps, every=args.every, batches=args.batches, below=args.below, silent=args.silent)
    runs = stored_runs(args.output, way)
    for seed, name in itertools.product(args.seeds, args.recipes):
        data = load_data(preset(name, {"training.seed": seed}))
        for setting in args.settings:
            if (name, setting, seed) in runs: continue
            runs[name, setting, seed] = run = train_until_it_speaks(name, setting, seed, data.val, args)
            print(f"{name:16} seed {seed}  {setting:24} {run['left'] or f'not within {args.steps}'}", f"({run['seconds']} s)", flush=True)
            machine = dict(platform=platform.platform(), threads=args.threads, torch=torch.__version__)
            atomic_write(args.output, as_text(machine, way, runs))


if __name__ == "__main__":
    main()
