"""Training step of the TDS model against a straightforward formulation of the same function, with the same weights.

    python benchmarks/tds_step.py [--pairs 9] [--batch 8] [--frames 622] [--threads 2 1]

The straightforward one is time first, rotates the input three times, and permutes the whole batch for a 2-D convolution and back.
Both run alternately in one process; ratios are medians of pair-wise ratios of wall time and of processor time (the machine may be shared).
`ratio_of_best` compares the fastest step of each, which other jobs disturb least. Leaves benchmarks/results/tds_step.json.
"""
import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from semgbook.ctc import CTCHead, ctc_loss
from semgbook.encoders import ENCODERS, build_encoder

BANDS, ELECTRODES, BINS, CLASSES = 2, 16, 33, 99
FEATURES, CHANNELS, KERNEL, LAYERS = 384, 24, 32, 4
WIDTH = BANDS * FEATURES // CHANNELS


class PlainNorm(nn.Module):
    "Batch norm over electrodes as a 2-D batch norm on a permuted batch."
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(BANDS * ELECTRODES)

    def forward(self, x):  # (T, N, B, C, F)
        t, n = x.shape[:2]
        y = self.norm(x.permute(1, 2, 3, 4, 0).reshape(n, BANDS * ELECTRODES, BINS, t))
        return y.view(n, BANDS, ELECTRODES, BINS, t).permute(4, 0, 1, 2, 3)


class PlainMLP(nn.Module):
    "Three rotated copies of each band through the same layer."
    def __init__(self):
        super().__init__()
        self.bands = nn.ModuleList(nn.Linear(ELECTRODES * BINS, FEATURES) for _ in range(BANDS))

    def forward(self, x):  # (T, N, B, C, F)
        out = []
        for band, layer in enumerate(self.bands):
            copies = torch.stack([x[:, :, band].roll(offset, 2) for offset in (-1, 0, 1)], 2)  # (T, N, 3, C, F)
            out.append(functional.relu(layer(copies.flatten(3))).mean(2))
        return torch.cat(out, 2)  # (T, N, D), channel first


class PlainConv(nn.Module):
    "2-D convolution with kernel (1, 32) on (N, channel, width, time)."
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(CHANNELS, CHANNELS, (1, KERNEL)), nn.LayerNorm(BANDS * FEATURES)

    def forward(self, x):  # (T, N, D)
        t, n, d = x.shape
        y = functional.relu(self.conv(x.permute(1, 2, 0).reshape(n, CHANNELS, WIDTH, t)))
        y = y.reshape(n, d, -1).permute(2, 0, 1)  # (T', N, D)
        return self.norm(y + x[-len(y):])


class PlainFull(nn.Module):
    "Two linear layers, residual, layer norm."
    def __init__(self):
        super().__init__()
        d = BANDS * FEATURES
        self.layers, self.norm = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)), nn.LayerNorm(d)

    def forward(self, x): return self.norm(x + self.layers(x))


class Plain(nn.Module):
    "The whole model, time first, with its own CTC loss."
    def __init__(self):
        super().__init__()
        tds = [layer for _ in range(LAYERS) for layer in (PlainConv(), PlainFull())]
        self.model = nn.Sequential(PlainNorm(), PlainMLP(), *tds, nn.Linear(BANDS * FEATURES, CLASSES))

    def forward(self, x, lengths):  # (T, N, B, C, F)
        log_probs = functional.log_softmax(self.model(x).float(), -1)  # (T', N, K)
        return log_probs, lengths - (len(x) - len(log_probs))

    def loss(self, x, lengths, labels, label_lengths):
        log_probs, lengths = self(x, lengths)
        return functional.ctc_loss(log_probs, labels, lengths, label_lengths, blank=CLASSES - 1)


class Ours(nn.Module):
    "The package's encoder, head and loss."
    def __init__(self):
        super().__init__()
        self.encoder = build_encoder(ENCODERS["tds"], BANDS, ELECTRODES, BINS)
        self.head = CTCHead(self.encoder.out_features, CLASSES)

    def forward(self, x, lengths): return self.head(self.encoder(x, lengths), self.encoder.out_lengths(lengths))  # (N, T, B, C, F)

    def loss(self, x, lengths, labels, label_lengths): return ctc_loss(self(x, lengths), labels, label_lengths)[0]


def carry_over(plain, ours):
    "Give our model the plain one's weights: features go from channel first to width first with bands interleaved."
    order = torch.arange(BANDS * FEATURES).view(BANDS, CHANNELS // BANDS, WIDTH).permute(2, 1, 0).flatten()
    mixed = order[:CHANNELS] // WIDTH
    blocks, layers = ours.encoder.blocks, list(plain.model)
    with torch.no_grad():
        for k in ("running_mean", "running_var"): getattr(blocks["norm1"].norm, k).copy_(getattr(layers[0].norm, k))
        for k, mine in (("weight", "gain"), ("bias", "offset")): getattr(blocks["norm1"], mine).copy_(getattr(layers[0].norm, k).view(BANDS, ELECTRODES))
        for band, layer in enumerate(layers[1].bands):
            rows = order[band::BANDS] - band * FEATURES
            for k in ("weight", "bias"): getattr(blocks["mlp1"].bands[band][0], k).copy_(getattr(layer, k)[rows])
        for i in range(LAYERS):
            (conv, full), block = layers[2 + 2 * i:4 + 2 * i], blocks[f"tds{i + 1}"]
            block.conv.conv.weight.copy_(conv.conv.weight[mixed][:, mixed].transpose(2, 3))
            block.conv.conv.bias.copy_(conv.conv.bias[mixed])
            for a, b in ((full.layers[0], block.full.first), (full.layers[2], block.full.second)):
                b.weight.copy_(a.weight[order][:, order])
                b.bias.copy_(a.bias[order])
        ours.head.linear.weight.copy_(layers[-1].weight[:, order])
        ours.head.linear.bias.copy_(layers[-1].bias)


def step(model, optimiser, data, bf16):
    "One training step; seconds of wall time and of processor time."
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16): loss = model.loss(*data)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(plain, ours, time_first, batch_first, pairs, bf16_plain, bf16_ours):
    "Alternate steps of both; medians, and medians of pair-wise ratios."
    runs = [(model, torch.optim.Adam(model.parameters(), 1e-4), data, bf16)
            for model, data, bf16 in ((plain, time_first, bf16_plain), (ours, batch_first, bf16_ours))]
    for run in runs: step(*run)
    times = [[step(*run) for run in runs] for _ in range(pairs)]  # pairs, model, (wall, cpu)
    columns = {name: [[run[k] for run in pair] for pair in times] for k, name in enumerate(("wall_s", "cpu_s"))}
    return {name: dict(plain=statistics.median(p for p, _ in rows), ours=statistics.median(o for _, o in rows),
                       ratio=statistics.median(p / o for p, o in rows), ratio_of_best=min(p for p, _ in rows) / min(o for _, o in rows))
            for name, rows in columns.items()}


def main(pairs, batch, frames, threads):
    torch.manual_seed(0)
    plain, ours = Plain(), Ours()
    x = torch.randn(batch, frames, BANDS, ELECTRODES, BINS) + 0.5
    lengths, label_lengths = torch.full((batch,), frames), torch.randint(8, 24, (batch,))
    labels = torch.randint(0, CLASSES - 1, (batch, 24))
    batch_first = x, lengths, labels, label_lengths
    time_first = x.transpose(0, 1).contiguous(), lengths, labels, label_lengths

    carry_over(plain, ours)
    equal = {}
    for mode in ("train", "eval"):
        getattr(plain, mode)(), getattr(ours, mode)()
        with torch.no_grad(): a, b = plain(*time_first[:2])[0].transpose(0, 1), ours(*batch_first[:2]).log_probs
        equal[f"{mode}_max_difference_of_log_probs"] = (a - b).abs().max().item()
    assert max(equal.values()) < 1e-5, equal
    plain.train(), ours.train()

    result = dict(equal, batch=batch, frames=frames, pairs=pairs, torch=torch.__version__, machine=platform.processor() or platform.machine())
    for n in threads:
        torch.set_num_threads(n)
        for name, bf16_plain, bf16_ours in (("fp32", False, False), ("bf16", True, True), ("fp32_plain_against_bf16_ours", False, True)):
            name = f"{name}_{n}_thread{'s' * (n > 1)}"
            result[name] = compare(plain, ours, time_first, batch_first, pairs, bf16_plain, bf16_ours)
            for clock, row in result[name].items(): print(f"{name:38} {clock:7}", *(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    path = Path(__file__).parent / "results" / "tds_step.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(equal), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("pairs", 9), ("batch", 8), ("frames", 622)): parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    main(**vars(parser.parse_args()))
