"Gradual unfreezing: schedules, groups of every encoder, frozen weights and statistics, true learning rates, resume, anchor."
import io

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from torch import nn

from semgbook.ctc import CTCHead
from semgbook.encoders import ENCODERS, build_encoder, encoder_line, narrow
from semgbook.recipes import Optimiser
from semgbook.unfreezing import (BROAD_GROUPS, GroupStart, Unfreezing, UnfreezingError, UnfreezingSettings, anchor_pull, anchor_reference, format_schedule,
                                 learning_rates, make_scheduler, one_cycle, parameter_groups, parse_schedule, resolve_schedule)

SMALL = (2, 4, 5)  # bands, electrodes, bins
LINE = "norm mlp(features=6) gru(hidden=5) linear(features=8) bilstm(layers=1,hidden=4,dropout=0.2)"
PUBLISHED = "output@0 recurrent@50/300 mlp@100/300 norm@150/300"
SHORT = "output@0 recurrent@1/6 linear@2/6 mlp@3/6*0.5 norm@4/6"  # one group after the other, in six epochs
PER_EPOCH = 3
ADAMW = Optimiser(name="adamw", lr=1e-2, weight_decay=0.1, schedule="one_cycle", warmup=0.3)
COSINE = Optimiser(name="adamw", lr=1e-2, weight_decay=0.1, schedule="warmup_cosine", warmup=0.3, final_lr=1e-5)
SCHEDULES = {"one_cycle": ADAMW, "warmup_cosine": COSINE, "constant": Optimiser(name="adamw", lr=1e-2, schedule="constant"),
             "per_epoch": Optimiser(name="adamw", lr=1e-2, schedule="warmup_cosine", warmup=0.3, per_epoch=True)}


class Toy(nn.Module):
    "An encoder and a head, without a front end."

    def __init__(self, line=LINE, n_classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = build_encoder(line, *SMALL)
        self.head = CTCHead(self.encoder.out_features, n_classes)

    def forward(self, frames):
        return self.head(self.encoder(frames), torch.full((len(frames),), frames.shape[1])).log_probs


def loss_at(model, step):
    "Loss of one batch, the same at the same step; dropout too."
    draw = torch.Generator().manual_seed(step)
    frames, labels = 2 + 3 * torch.randn(4, 12, *SMALL, generator=draw), torch.randint(4, (4, 12), generator=draw)
    torch.manual_seed(step)
    return nn.functional.nll_loss(model(frames).flatten(0, 1), labels.flatten())


def start(settings, model, epochs=6, optimiser=ADAMW):
    unfreezing = Unfreezing(settings, model, epochs)
    adam = torch.optim.AdamW(unfreezing.groups(optimiser.lr), lr=optimiser.lr, weight_decay=optimiser.weight_decay)
    return unfreezing, adam, make_scheduler(adam, optimiser, unfreezing, epochs * PER_EPOCH, PER_EPOCH)


def train(model, unfreezing, adam, scheduler, epochs, after=lambda epoch: None):
    "The plainest loop there is; the true rate of every group at every step comes back."
    rates = []
    for epoch in epochs:
        model.train()
        unfreezing.apply(epoch)
        for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH):
            adam.zero_grad()
            loss_at(model, step).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            rates.append([g["lr"] * any(p.requires_grad for p in g["params"]) for g in adam.param_groups])
            scheduler.step()
        after(epoch)
    return np.array(rates)


def tensors(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(before, after):
    "Groups of which at least one tensor differs by at least one bit; counters of batches count as statistics."
    names = {"encoder.blocks.norm1": "norm", "encoder.blocks.mlp1": "mlp", "encoder.blocks.gru1": "gru", "encoder.blocks.linear1": "linear",
             "encoder.blocks.bilstm1": "bilstm", "head": "output"}
    return {group for k in before if not torch.equal(before[k], after[k]) for prefix, group in names.items() if k.startswith(prefix + ".")}


# --- the schedule ---------------------------------------------------------------------------------------------------

NAMES = ("norm", "mlp", "tds", "gru", "gpt2", "output", *BROAD_GROUPS)
STARTS = strategies.builds(lambda name, den, part, never, rate: GroupStart(name, 1, 1, rate) if never else GroupStart(name, int(part * den), den if int(part * den) else 1, rate),
                           strategies.sampled_from(NAMES), strategies.integers(1, 900), strategies.floats(0, 0.999), strategies.booleans(), strategies.floats(1e-9, 1e9))


@given(strategies.lists(STARTS, unique_by=lambda s: s.name))
def test_a_schedule_survives_being_written(starts):
    assert parse_schedule(format_schedule(starts)) == tuple(starts)


def test_the_published_line():
    assert parse_schedule("  output@0   recurrent@50/300*0.3 ") == (GroupStart("output"), GroupStart("recurrent", 50, 300, 0.3))
    assert format_schedule(parse_schedule(PUBLISHED)) == PUBLISHED
    assert parse_schedule("") == () == parse_schedule("  ")
    assert [s.begins(300) for s in parse_schedule(PUBLISHED)] == [0, 50, 100, 150]


@pytest.mark.parametrize("epochs, begins", [(600, [0, 100, 200, 300]), (30, [0, 5, 10, 15]), (6, [0, 1, 2, 3]), (2, [0, 0, 1, 1]), (1, [0, 0, 0, 0])])
def test_a_shorter_run_keeps_the_shape(epochs, begins):
    assert [s.begins(epochs) for s in parse_schedule(PUBLISHED)] == begins


def test_a_late_group_moves_in_the_last_epoch_and_never_is_never():
    late, never = parse_schedule("mlp@299/300 norm@never")
    assert (late.begins(4), never.begins(4), never.begins(300)) == (3, 4, 300)


@pytest.mark.parametrize("line, word, message", [
    ("output@0 recurent@50/300", "recurent@50/300", "did you mean 'recurrent'"),
    ("output@0 mlp", "mlp", "mlp@50/300"),
    ("output@0 mlp@50", "mlp@50", "50/300"),
    ("output@0 mlp@0.5 norm@0", "mlp@0.5", "no share"),
    ("mlp@300/300", "mlp@300/300", "never"),
    ("mlp@1/0", "mlp@1/0", "no share"),
    ("mlp@1/2*0", "mlp@1/2*0", "above 0"),
    ("mlp@1/2*", "mlp@1/2*", "above 0"),
    ("mlp@1/2*nan", "mlp@1/2*nan", "above 0"),
    ("mlp@0 norm@0 mlp@1/2", "mlp@1/2", "twice"),
])
def test_errors_point_at_the_word(line, word, message):
    with pytest.raises(UnfreezingError, match=message.replace("*", r"\*")) as error:
        UnfreezingSettings(line)
    *_, shown, carets = str(error.value).split("\n")
    assert "".join(c for c, mark in zip(shown, carets.ljust(len(shown))) if mark == "^") == word


@pytest.mark.parametrize("options, message", [(dict(cycle="groups"), "did you mean 'group'"), (dict(anchor=-1.0), "0 or a positive"), (dict(anchor=float("nan")), "0 or a positive")])
def test_settings_are_checked(options, message):
    with pytest.raises(UnfreezingError, match=message):
        UnfreezingSettings(**options)


# --- groups ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_of_every_encoder_is_in_exactly_one_group(name):
    if "gpt2" in name: pytest.importorskip("transformers", reason="needs the optional extra gpt2")
    model = Toy(narrow(name))
    groups = parameter_groups(model)
    held = [id(p) for pairs in groups.values() for _, p in pairs]
    assert sorted(held) == sorted(map(id, model.parameters()))
    words = [s.name for s in model.encoder.specs]
    assert list(groups) == [*dict.fromkeys(words), "output"]
    blocks = list(model.encoder.blocks.values())
    owners = [s.name for s in model.encoder.specs for _ in range(s.count)]
    for word in words:
        assert {id(p) for _, p in groups[word]} == {id(p) for b, owner in zip(blocks, owners) if owner == word for p in b.parameters()}
    starts = resolve_schedule("output@0 body@50/300 mlp@100/300 norm@150/300", groups)
    assert list(starts) == list(groups) and all(starts[w].num == 50 for w in words if w not in ("norm", "mlp"))


def test_what_stands_before_the_encoder_has_a_group_of_its_own():
    model = Toy()
    model.front_end = nn.Linear(2, 2)
    assert set(parameter_groups(model)) == {"norm", "mlp", "gru", "linear", "bilstm", "output", "front_end"}
    assert resolve_schedule("output@0 body@0 mlp@0 norm@0 rest@1/2", parameter_groups(model))["front_end"].name == "rest"


def test_the_narrowest_word_decides():
    names = ["norm", "mlp", "tds", "gru", "lstm", "output"]
    starts = resolve_schedule("rest@1/2 body@1/3 recurrent@1/4 gru@1/5 output@0", names)
    assert {n: s.name for n, s in starts.items()} == dict(norm="rest", mlp="rest", tds="body", gru="gru", lstm="recurrent", output="output")
    assert list(starts) == names
    assert set(resolve_schedule("", names).values()) == {GroupStart(n) for n in names}
    assert resolve_schedule("body@0 norm@0 mlp@0 output@0 rest@1/2", names)["mlp"].name == "mlp"  # nothing left for rest


@pytest.mark.parametrize("line, message", [
    ("output@0 recurrent@1/6 mlp@1/3", "does not say when norm and linear begin: add norm@"),
    ("output@0 recurrent@1/6 mlp@1/3 norm@1/2", "does not say when linear begins: add linear@"),
    ("output@0 tds@1/6 rest@1/3", "no group left for 'tds'"),
    ("gru@0 bilstm@0 linear@0 body@1/2 rest@0", "no group left for 'body'"),
])
def test_a_schedule_that_does_not_fit_the_model_is_refused(line, message):
    with pytest.raises(UnfreezingError, match=message):
        Unfreezing(UnfreezingSettings(line), Toy(), 6)


def test_models_without_blocks_are_refused():
    with pytest.raises(UnfreezingError, match="Linear has no encoder"):
        parameter_groups(nn.Linear(2, 2))


# --- frozen means frozen ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cycle", ["global", "group"])
def test_frozen_groups_do_not_move_by_one_bit(cycle):
    "Weights and statistics, with AdamW and weight decay, epoch by epoch; and what is free does move."
    model, seen = Toy(), []
    state = start(UnfreezingSettings(SHORT, cycle), model)
    before = [tensors(model)]

    def look(epoch):
        seen.append(changed(before[0], tensors(model)))
        before[0] = tensors(model)

    train(model, *state, range(6), look)
    assert seen == [{"output"}, {"output", "gru", "bilstm"}, {"output", "gru", "bilstm", "linear"}, {"output", "gru", "bilstm", "linear", "mlp"}] + [
        {"output", "gru", "bilstm", "linear", "mlp", "norm"}] * 2


def test_never_is_frozen_to_the_end():
    model = Toy()
    before = tensors(model)
    train(model, *start(UnfreezingSettings("output@0 rest@never"), model), range(6))
    assert changed(before, tensors(model)) == {"output"}


def test_the_published_switch_lets_statistics_move_and_weights_not():
    model = Toy()
    before = tensors(model)
    train(model, *start(UnfreezingSettings(SHORT, freeze_statistics=False), model), range(3))
    after = tensors(model)
    moved = {k.removeprefix("encoder.blocks.norm1.") for k in before if k.startswith("encoder.blocks.norm1.") and not torch.equal(before[k], after[k])}
    assert moved == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_a_frozen_group_normalises_with_the_statistics_it_has():
    "The switch changes what the network computes, not only what it remembers."
    frames, outputs = 5 + torch.randn(4, 12, *SMALL, generator=torch.Generator().manual_seed(1)), {}
    for still in (True, False):
        model = Toy("norm mlp(features=6)")
        Unfreezing(UnfreezingSettings("output@0 rest@1/2", freeze_statistics=still), model, 6).apply(0)
        outputs[still] = model(frames)
    model.eval()
    fresh = Toy("norm mlp(features=6)").eval()(frames)
    assert torch.equal(outputs[True], fresh) and not torch.allclose(outputs[False], fresh)


def test_apply_can_be_repeated_and_survives_train_and_eval():
    model = Toy()
    unfreezing = Unfreezing(UnfreezingSettings(SHORT), model, 6)
    norm, dropout = model.encoder.blocks["norm1"].norm, model.encoder.blocks["bilstm1"].full[2]

    def state():
        return [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]

    assert unfreezing.apply(2) == ("gru", "linear", "bilstm", "output") == unfreezing.moving(2)
    first = state()
    unfreezing.apply(2)
    assert state() == first
    model.eval()
    model.train()
    assert norm.training  # that is why apply comes after
    unfreezing.apply(2)
    assert state() == first and not norm.training and dropout.training
    unfreezing.apply(5)
    assert norm.training and all(p.requires_grad for p in model.parameters())
    model.eval()
    unfreezing.apply(5)
    assert not any(m.training for m in model.modules())
    unfreezing.apply(0)  # backwards, as when an earlier checkpoint is taken up
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.linear.weight", "head.linear.bias"]


def test_old_gradients_do_not_move_a_frozen_group():
    model = Toy()
    unfreezing, adam, _ = start(UnfreezingSettings(SHORT), model)
    loss_at(model, 0).backward()
    unfreezing.apply(0)
    before = tensors(model)
    adam.step()
    assert changed(before, tensors(model)) == {"output"}


def test_what_a_block_keeps_frozen_stays_frozen():
    model = Toy()
    model.encoder.blocks["mlp1"].bands[0][0].weight.requires_grad_(False)
    unfreezing = Unfreezing(UnfreezingSettings(SHORT), model, 6)
    for epoch in range(6): unfreezing.apply(epoch)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["encoder.blocks.mlp1.bands.0.0.weight"]
    assert sum(len(g["params"]) for g in unfreezing.groups(1.0)) == len(list(model.parameters()))


def test_a_second_unfreezing_asks_for_the_release_of_the_first():
    model = Toy()
    first = Unfreezing(UnfreezingSettings(SHORT), model, 6)
    first.apply(0)
    with pytest.raises(UnfreezingError, match=r"'norm' can move.*release\(\)"):
        Unfreezing(UnfreezingSettings(SHORT), model, 6)
    first.release()
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())
    assert Unfreezing(UnfreezingSettings(SHORT), model, 6).last_start == 4


# --- the optimiser ---------------------------------------------------------------------------------------------------

def test_the_first_step_after_unfreezing_is_that_of_a_fresh_adam():
    model = Toy()
    unfreezing, adam, scheduler = start(UnfreezingSettings(SHORT), model)
    train(model, unfreezing, adam, scheduler, range(3))  # the mlp has been frozen for nine steps
    group = next(g for g in adam.param_groups if g["name"] == "mlp")
    assert not any(p in adam.state for p in group["params"])
    twins = [nn.Parameter(p.detach().clone()) for p in group["params"]]
    fresh = torch.optim.AdamW(twins, lr=group["lr"], betas=group["betas"], weight_decay=0.1)
    model.train()
    unfreezing.apply(3)
    adam.zero_grad()
    loss_at(model, 9).backward()
    for p, twin in zip(group["params"], twins): twin.grad = p.grad.clone()
    adam.step()
    fresh.step()
    assert all(torch.equal(p, twin) for p, twin in zip(group["params"], twins)) and all(adam.state[p]["step"] == 1 for p in group["params"])


@pytest.mark.parametrize("cycle", ["global", "group"])
@pytest.mark.parametrize("name, cut", [("one_cycle", 2), ("one_cycle", 3), ("warmup_cosine", 4), ("per_epoch", 3)])
def test_a_resumed_run_is_the_uninterrupted_run(cycle, name, cut):
    "Through bytes, read without running anything; all tensors and all later rates are the same to the last bit."
    settings, whole, optimiser = UnfreezingSettings(SHORT, cycle), Toy(), SCHEDULES[name]
    rates = train(whole, *start(settings, whole, optimiser=optimiser), range(6))
    begun = Toy()
    unfreezing, adam, scheduler = start(settings, begun, optimiser=optimiser)
    train(begun, unfreezing, adam, scheduler, range(cut))
    torch.save([begun.state_dict(), adam.state_dict(), scheduler.state_dict()], buffer := io.BytesIO())
    buffer.seek(0)
    saved, resumed = torch.load(buffer, weights_only=True), Toy()
    state = start(settings, resumed, optimiser=optimiser)
    for part, content in zip((resumed, *state[1:]), saved): part.load_state_dict(content)
    again = train(resumed, *state, range(cut, 6))
    assert np.array_equal(again, rates[cut * PER_EPOCH:])
    assert not changed(tensors(whole), tensors(resumed))


def test_without_a_schedule_it_is_plain_training():
    plain, ours = Toy(), Toy()
    adam = torch.optim.AdamW(plain.parameters(), lr=ADAMW.lr, weight_decay=ADAMW.weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(adam, ADAMW.lr, total_steps=6 * PER_EPOCH + 1, pct_start=ADAMW.warmup)
    for step in range(6 * PER_EPOCH):
        adam.zero_grad()
        loss_at(plain, step).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adam.step()
        scheduler.step()
    train(ours, *start(UnfreezingSettings(), ours), range(6))
    assert not changed(tensors(plain), tensors(ours))


# --- learning rates --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cycle", ["global", "group"])
@pytest.mark.parametrize("optimiser", SCHEDULES.values(), ids=SCHEDULES)
def test_the_true_rates_are_those_of_the_optimiser(cycle, optimiser):
    model, settings = Toy(), UnfreezingSettings(SHORT, cycle)
    seen = train(model, *start(settings, model, optimiser=optimiser), range(6))
    told = learning_rates(optimiser, settings, parameter_groups(model), 6 * PER_EPOCH, PER_EPOCH)
    assert told.shape == (18, 6) and np.allclose(seen, told, rtol=1e-12, atol=0)
    first = [(row > 0).argmax() for row in told.T]
    assert first == [12, 9, 3, 6, 3, 0]  # norm, mlp, gru, linear, bilstm, output


def test_the_published_cycle_peaks_before_the_lower_groups_move():
    steps = 10
    rates = learning_rates(ADAMW, UnfreezingSettings(PUBLISHED), ["norm", "mlp", "bilstm", "output"], 300 * steps, steps)
    norm, mlp, recurrent, output = rates.T
    assert output.argmax() == recurrent.argmax() == 90 * steps - 1  # the last step of the 90th epoch
    for lower, begin in ((mlp, 100), (norm, 150)):
        assert not lower[:begin * steps].any() and (np.diff(lower[begin * steps:]) < 0).all()
        assert lower.max() == lower[begin * steps] > 0.8 * ADAMW.lr  # no warm-up either: the first step is the largest


@pytest.mark.parametrize("optimiser", [ADAMW, COSINE], ids=["one_cycle", "warmup_cosine"])
def test_with_a_cycle_of_its_own_every_group_warms_up(optimiser):
    steps, settings = 10, UnfreezingSettings("output@0 recurrent@50/300 mlp@100/300 norm@150/300*0.3", "group")
    rates = learning_rates(optimiser, settings, ["norm", "mlp", "bilstm", "output"], 300 * steps, steps)
    for column, begin, peak in zip(rates.T, (150, 100, 50, 0), (0.3, 1, 1, 1)):
        own = column[begin * steps:]
        assert not column[:begin * steps].any() and own[0] <= peak * optimiser.lr / 24.99
        assert own.max() == pytest.approx(peak * optimiser.lr, rel=1e-3)
        assert own.argmax() == pytest.approx(0.3 * len(own), abs=1.5)
        assert (np.diff(own[:own.argmax()]) > 0).all() and (np.diff(own[own.argmax() + 1:]) < 0).all()
    alone = learning_rates(optimiser, UnfreezingSettings(), ["output"], 200 * steps, steps)[:, 0]
    assert np.allclose(rates[100 * steps:, 1], alone, rtol=1e-12)  # the same curve, in the time that is left


@pytest.mark.parametrize("n, warmup", [(1, 0.3), (2, 0.0), (7, 0.0), (40, 0.3), (41, 0.95)])
def test_one_cycle_is_torchs(n, warmup):
    weight = nn.Parameter(torch.zeros(1))
    adam = torch.optim.Adam([weight], lr=0.5)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(adam, 0.5, total_steps=n + 1, pct_start=max(warmup, 1.5 / (n + 1)))
    for position in range(n + 1):
        rate, momentum = one_cycle(position, n, warmup)
        assert (0.5 * rate, momentum) == pytest.approx((adam.param_groups[0]["lr"], adam.param_groups[0]["betas"][0]), rel=1e-12)
        adam.step()
        if position < n: scheduler.step()


def test_momentum_follows_the_curve_of_its_group():
    model = Toy()
    _, adam, scheduler = start(UnfreezingSettings("output@0 rest@3/6", "group"), model)
    by_name = {g["name"]: g for g in adam.param_groups}
    seen = []
    for _ in range(18):
        seen.append((by_name["output"]["betas"][0], by_name["mlp"]["betas"][0]))
        adam.step()
        scheduler.step()
    output, mlp = np.array(seen).T
    assert output == pytest.approx([one_cycle(s, 18, 0.3)[1] for s in range(18)])
    assert mlp == pytest.approx([0.95] * 9 + [one_cycle(s, 9, 0.3)[1] for s in range(9)])


@pytest.mark.parametrize("cycle", ["global", "group"])
def test_a_classifier_trained_along_always_moves(cycle):
    model, classifier = Toy(), nn.Linear(2, 2)
    settings = UnfreezingSettings("output@0 rest@never", cycle)
    unfreezing = Unfreezing(settings, model, 6)
    adam = torch.optim.AdamW([*unfreezing.groups(1e-2), dict(params=list(classifier.parameters()), lr=1e-3)])
    scheduler = make_scheduler(adam, COSINE, unfreezing, 18, PER_EPOCH)
    rates = []
    for _ in range(18):
        rates.append(adam.param_groups[-1]["lr"])
        adam.step()
        scheduler.step()
    assert np.allclose(rates, 0.1 * learning_rates(COSINE, UnfreezingSettings(), ["output"], 18, PER_EPOCH)[:, 0])


def test_a_scheduler_for_another_run_is_refused():
    model = Toy()
    unfreezing, adam, _ = start(UnfreezingSettings(SHORT), model)
    with pytest.raises(UnfreezingError, match="20 steps are not 6 epochs of 3"):
        make_scheduler(adam, ADAMW, unfreezing, 20, PER_EPOCH)


def test_rate_factors_say_what_moves():
    unfreezing = Unfreezing(UnfreezingSettings(SHORT), Toy(), 6)
    assert unfreezing.rate_factors(2) == dict(norm=0, mlp=0, gru=1, linear=1, bilstm=1, output=1)
    assert unfreezing.rate_factors(3)["mlp"] == 0.5
    assert {g["name"]: g["lr"] for g in unfreezing.groups(2.0)}["mlp"] == 1.0


# --- the anchor ------------------------------------------------------------------------------------------------------

def test_the_anchor_pulls_loaded_parameters_and_nothing_else():
    model = Toy()
    loaded = [k for k in model.state_dict() if k.startswith("encoder.") and "mlp" not in k]
    reference, began = anchor_reference(model, loaded), tensors(model)
    assert set(reference) == {n for n, _ in model.named_parameters() if n in loaded}
    assert anchor_pull(model, reference) == 0
    shift = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters(): p += torch.randn(p.shape, generator=shift)
    own = dict(model.named_parameters())
    pull = anchor_pull(model, reference)
    pull.backward()
    assert pull.detach().item() == pytest.approx(sum(float((own[n].detach() - began[n]).double().square().sum()) for n in reference) / 2, rel=1e-5)
    for name, p in own.items():
        assert torch.allclose(p.grad, p - began[name]) if name in reference else p.grad is None


def test_an_anchor_on_something_else_is_refused():
    with pytest.raises(UnfreezingError, match="nothing to anchor"):
        anchor_reference(Toy(), ["encoder.blocks.norm1.norm.running_mean", "module.weight"])
    reference = anchor_reference(Toy(), Toy().state_dict())
    with pytest.raises(UnfreezingError, match="head.linear.weight"):
        anchor_pull(Toy(n_classes=7), reference)


def test_the_published_line_fits_the_published_encoder():
    model = Toy(narrow(encoder_line("bilstm")))
    assert Unfreezing(UnfreezingSettings(PUBLISHED), model, 300).begins == dict(norm=150, mlp=100, bilstm=50, output=0)
