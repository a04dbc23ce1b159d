"Training: the published schedule, repeatable runs, resuming, and what happens when nothing can be learnt."
import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from toys import toy_corpus, toy_recipe

from semgbook.ctc import ctc_loss
from semgbook.recipes import PRESETS, Optimiser, override, preset
from semgbook.training import Ledger, build_model, build_optimiser, count_parameters, fit, is_better, lineage_of, load_data, plan_moves, sample_field, sample_stride, score_windows, split_corpus, starting_weights
from semgbook.splits import SplitError
from semgbook.transfer import Checkpoint, load_checkpoint

NUMBERS = ("epoch", "step", "lr", "train_loss", "train_cer", "val_loss", "val_cer", "val_blank_fraction")


def numbers(history): return [[row[n] for n in NUMBERS] for row in history]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return toy_corpus(tmp_path_factory.mktemp("toy"))


def rates(settings, epochs, per_epoch=3):
    optimiser, schedule = build_optimiser([torch.nn.Parameter(torch.zeros(1))], settings, epochs * per_epoch, per_epoch)
    out = []
    for _ in range(epochs * per_epoch):
        out.append(optimiser.param_groups[0]["lr"]); optimiser.step(); schedule.step()
    return np.array(out)


def test_per_epoch_schedule_is_the_published_one(shared):
    for run in json.loads(shared("golden/lr_schedule.json").read_text())["runs"]:
        settings = Optimiser(lr=run["base_lr"], final_lr=run["final_lr"], warmup=run["warmup_epochs"] / run["max_epochs"], per_epoch=True)
        np.testing.assert_allclose(rates(settings, run["max_epochs"])[::3], run["lr"], rtol=1e-9)


def test_per_step_schedules_begin_at_once_and_end_low():
    for schedule in ("warmup_cosine", "one_cycle"):
        got = rates(Optimiser(schedule=schedule, warmup=0.3), 50)
        assert got[3] > got[0] and np.isclose(got.max(), 1e-3, rtol=1e-2) and got[-1] < 2e-5
    assert set(rates(Optimiser(schedule="constant"), 5)) == {1e-3}


def test_same_seed_same_history_and_another_seed_another(corpus, tmp_path):
    recipe = toy_recipe(corpus)
    first, again = (fit(recipe, load_data(recipe), tmp_path / name)[1] for name in "ab")
    other = toy_recipe(corpus, training__seed=1)
    assert numbers(first) == numbers(again) != numbers(fit(other, load_data(other), tmp_path / "c")[1])


@pytest.mark.parametrize("encoder", ["norm mlp(features=16) tds:1(channels=4,kernel=8)", "norm mlp(features=16) bilstm(hidden=8)"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_equals_undisturbed(corpus, tmp_path, encoder, stop_after):
    recipe = toy_recipe(corpus, training__epochs=4, encoder=encoder, optimiser__accumulate=2, training__decode_train_every=2)

    class PowerCut(Exception): pass

    def cut(ledger, better):
        if len(ledger.history) == stop_after: raise PowerCut

    with pytest.raises(PowerCut): fit(recipe, load_data(recipe), tmp_path / "cut", on_epoch=cut)
    resumed_model, resumed = fit(recipe, load_data(recipe), tmp_path / "cut")
    model, history = fit(recipe, load_data(recipe), tmp_path / "whole")
    assert numbers(resumed) == numbers(history)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed_model.state_dict().values()))


def test_every_epoch_has_its_own_order(corpus, tmp_path):
    recipe, seen = toy_recipe(corpus), []
    data = load_data(recipe)
    fit(recipe, data, tmp_path, on_epoch=lambda ledger, better: seen.append(tuple(data.train.schedule()[0])))
    assert len(set(seen)) == recipe.training.epochs


def test_a_finished_run_fits_no_further(corpus, tmp_path):
    recipe = toy_recipe(corpus)
    first, again = (fit(recipe, load_data(recipe), tmp_path)[1] for _ in range(2))
    assert numbers(first) == numbers(again)


@pytest.mark.parametrize("cers, patience, stops", [([50, 40, 41, 42], 2, True), ([50, 40, 41], 2, False), ([50, 49, 48, 47], 2, False), ([50, 51, 52, 53], 0, False)])
def test_patience_counts_from_the_best_epoch(corpus, cers, patience, stops):
    ledger = Ledger(toy_recipe(corpus, training__patience=patience), None)
    for epoch, cer in enumerate(cers):
        row = {"epoch": epoch, "val_cer": float(cer), "val_loss": 1.0}
        ledger.best = row if is_better(row, ledger.best) else ledger.best
        ledger.history.append(row)
    assert ledger.out_of_patience() is stops


def test_patience_ends_a_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("semgbook.training.is_better", lambda row, best: best is None)
    recipe = toy_recipe(corpus, training__epochs=30, training__patience=2)
    assert len(fit(recipe, load_data(recipe), tmp_path)[1]) == 3


def test_bf16_trains(corpus, tmp_path):
    recipe = toy_recipe(corpus, training__precision="bf16-mixed")
    history = fit(recipe, load_data(recipe), tmp_path)[1]
    assert all(np.isfinite(r["train_loss"]) for r in history) and history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_silent_model_is_spoken_of(corpus, tmp_path):
    recipe = toy_recipe(corpus, training__epochs=10, optimiser__lr=1e-7, blank_bias=20.0)
    with pytest.warns(UserWarning, match="blank"): fit(recipe, load_data(recipe), tmp_path)


def test_a_babbling_model_is_spoken_of(corpus, tmp_path):
    recipe = toy_recipe(corpus, training__epochs=10, optimiser__lr=1e-7, blank_bias=-20.0)
    with pytest.warns(UserWarning, match="blank_bias=4"): fit(recipe, load_data(recipe), tmp_path)


def test_sessions_without_a_key_press(tmp_path):
    "A corpus in which nobody types has no error rate; training goes through all the same."
    recipe = toy_recipe(toy_corpus(tmp_path / "quiet", presses=False), training__epochs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(recipe, load_data(recipe), tmp_path / "run")[1]
    assert history[-1]["val_cer"] is None and np.isfinite(history[-1]["val_loss"])


def test_score_does_not_depend_on_batch_size(corpus):
    small, large = (load_data(toy_recipe(corpus, training__batch_size=n)) for n in (2, 7))
    torch.manual_seed(0)
    model = build_model(toy_recipe(corpus), 2, 16)
    a, b = (score_windows(model, d.val, d.charset, torch.device("cpu")) for d in (small, large))
    assert a.predictions == b.predictions and a.counts == b.counts and a.loss == pytest.approx(b.loss, rel=1e-5)


def test_unknown_user_and_mixed_rates_are_refused(corpus, tmp_path):
    with pytest.raises(ValueError, match="nobody"): load_data(toy_recipe(corpus, data__users=["nobody"]))
    mixed = toy_corpus(tmp_path / "mixed", n_sessions=2)
    (mixed / "toy-1.hdf5").rename(mixed / "toy-9.hdf5")
    toy_corpus(mixed, n_sessions=2, rate=400.0)
    with pytest.raises(ValueError): load_data(toy_recipe(mixed))


@pytest.mark.parametrize("epochs, per_epoch, warmup", [(1, 1, 0.3), (1, 2, 0.0), (3, 3, 0.1), (1, 9, 0.1), (333, 3, 0.001)])
def test_one_cycle_takes_any_number_of_steps(epochs, per_epoch, warmup):
    "PyTorch's scheduler divides by the length of its rise less one step, which may be nothing."
    got = rates(Optimiser(schedule="one_cycle", warmup=warmup), epochs, per_epoch)
    assert np.isfinite(got).all() and (got > 0).all() and got.max() <= 1e-3 * (1 + 1e-9)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    "A run of one epoch whose training session is toy-0, its validation session toy-1, its test session toy-2."
    recipe, folder = toy_recipe(corpus, training__epochs=1), tmp_path_factory.mktemp("runs") / "first"
    fit(recipe, load_data(recipe), folder)
    return recipe, folder


def test_a_run_starts_from_the_weights_of_another(trained, tmp_path):
    recipe, folder = trained
    start = starting_weights(dataclasses.replace(recipe, start="first"), folder.parent)
    assert start.card["charset"] == "qwerty" and start.card["recipe"] == recipe.to_dict() and start.card["rate_hz"] == 500
    still = dataclasses.replace(recipe, start="first", optimiser=dataclasses.replace(recipe.optimiser, lr=1e-30, weight_decay=0.0))
    model, _ = fit(still, load_data(still, start=start), tmp_path / "second", start=start)
    moved = {k for k, v in model.state_dict().items() if not torch.allclose(v, start.state[k], atol=1e-12) and "running" not in k and "num_batches" not in k}
    assert not moved, "at a rate of nothing the weights stay those it started from"
    lineage = lineage_of(load_checkpoint(tmp_path / "second" / "model.safetensors"))
    assert lineage.steps == ("first", "second") and ("toy", "toy-0") in lineage.trained


@pytest.mark.parametrize("name", ["nowhere", "generic"])
def test_a_start_that_is_not_there_is_named(trained, name):
    recipe, folder = trained
    with pytest.raises(ValueError, match=name): starting_weights(dataclasses.replace(recipe, start=name), folder.parent)


def test_what_the_start_has_seen_is_not_tested_on(trained):
    recipe, folder = trained
    lineage = lineage_of(load_checkpoint(folder / "model.safetensors"))
    chosen = override(recipe, {"data.split_options": {"val": 0, "test": 2}})
    with pytest.raises(SplitError, match="toy-1.*chosen"): split_corpus(chosen, lineage)
    assert split_corpus(override(chosen, {"data.allow_leaks": True}), lineage).test
    assert split_corpus(recipe, lineage).test, "the same split again is clean"
    with pytest.raises(SplitError, match="no lineage"): split_corpus(recipe, lineage_of(Checkpoint({}, {})))


def test_fewer_minutes_of_training(corpus):
    "Only the training part shrinks."
    all_of_it, some = load_data(toy_recipe(corpus)), load_data(toy_recipe(corpus, data__train_minutes=0.2))
    minutes = [sum(p.duration_s for p in data.split.train) / 60 for data in (some, all_of_it)]
    assert minutes[0] == pytest.approx(0.2, abs=1e-3) and minutes[1] > 0.3
    assert (some.split.val, some.split.test) == (all_of_it.split.val, all_of_it.split.test)


@pytest.mark.parametrize("name", [n for n in PRESETS if n.endswith("_embedded") and (n != "tds_finetuned_embedded")])
def test_every_embedded_preset_makes_a_model_that_can_learn(name):
    "One window through the whole model and back: a finite loss, and a gradient for every movable weight."
    recipe = preset(name)
    if "gpt2" in recipe.encoder: pytest.importorskip("transformers", reason="the optional extra gpt2 is not installed")
    model = build_model(recipe, 2, 16).train()
    window, left, right = recipe.data.samples(2000.0)
    signal = 20 * torch.randn(2, window + left + right, 2, 16, generator=torch.Generator().manual_seed(0))
    emissions = model(signal, torch.tensor([signal.shape[1]] * 2), torch.Generator().manual_seed(0), torch.tensor([[left, right]] * 2))
    assert 12 <= emissions.lengths.min() <= emissions.lengths.max() <= emissions.log_probs.shape[1]
    loss, skipped = ctc_loss(emissions, torch.arange(10).repeat(2, 1), torch.tensor([10, 10]))
    loss.backward()
    assert loss.isfinite() and skipped == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad), "a weight that nothing reaches"


def test_published_sizes():
    tds = build_model(preset("tds_generic"), 2, 16)
    assert (count_parameters(tds), sample_field(tds), sample_stride(tds)) == (5_293_315, 2048, 16)
    kao = build_model(preset("bilstm_kao"), 2, 8)
    assert sample_field(kao) is None and kao.head.linear.out_features == 7
    signal, lengths = torch.randn(2, 1000, 2, 8), torch.tensor([1000, 820])
    assert kao.eval()(signal, lengths).lengths.tolist() == [94, 76]


def test_better_is_a_total_order():
    rows = [{"val_cer": c, "val_loss": v} for c, v in ((None, 1.0), (100.0, 3.0), (100.0, 2.0), (30.0, 9.0), (30.0, float("nan")))]
    assert [is_better(rows[3], r) for r in rows] == [True, True, True, False, True]
    assert all(is_better(r, None) for r in rows)


def test_frozen_run_data(corpus):
    data = load_data(toy_recipe(corpus))
    assert dataclasses.is_dataclass(data) and data.n_channels == 16 and data.description


@pytest.mark.parametrize("changes", [{"augment__crop": [100, 20]}, {"augment__noise_snr_db": [10.0, 20.0], "augment__noise_std": None}, {"augment__gain": [0.8, 1.2]}])
def test_every_augmentation_trains(corpus, tmp_path, changes):
    recipe = toy_recipe(corpus, training__epochs=1, **changes)
    history = fit(recipe, load_data(recipe), tmp_path)[1]
    plain = fit(toy_recipe(corpus, training__epochs=1), load_data(recipe), tmp_path / "plain")[1]
    assert np.isfinite(history[0]["train_loss"]) and history[0]["train_loss"] != plain[0]["train_loss"]


TWO_USERS = {"data__split": "fraction", "data__split_options": {"test_users": ["third"]}}


@pytest.fixture(scope="module")
def persons(tmp_path_factory): return toy_corpus(tmp_path_factory.mktemp("persons"), users=("first", "second", "third"))


@pytest.fixture(scope="module")
def persons_run(persons, tmp_path_factory):
    folder = tmp_path_factory.mktemp("persons_run")
    recipe = toy_recipe(persons, **TWO_USERS)
    fit(recipe, load_data(recipe), folder)
    return folder


def test_a_resumed_run_with_classifier_and_schedule_equals_an_undisturbed_one(persons, persons_run, tmp_path):
    start = load_checkpoint(persons_run / "model.safetensors")
    recipe = toy_recipe(persons, **TWO_USERS, start=str(persons_run), training__epochs=4, domain={"method": "dann", "ramp": 5.0, "warmup": 0.25, "cap": 0.3, "lr": 5e-3, "balanced": True},
                        unfreezing={"schedule": "output@0 tds@1/4 rest@2/4*0.5", "cycle": "group", "anchor": 1e-3})

    class PowerCut(Exception): pass

    def cut(ledger, better):
        if len(ledger.history) == 2: raise PowerCut

    run = lambda folder, **more: fit(recipe, load_data(recipe, start=start), folder, start=start, **more)
    with pytest.raises(PowerCut): run(tmp_path / "cut", on_epoch=cut)
    (resumed_model, resumed), (model, history) = run(tmp_path / "cut"), run(tmp_path / "whole")
    columns = NUMBERS + ("domain_loss", "domain_accuracy", "domain_weight", "domain_chance", "task_norm", "domain_norm", "applied")
    assert [[row.get(c) for c in columns] for row in resumed] == [[row.get(c) for c in columns] for row in history]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed_model.state_dict().values()))
    assert history[0]["domain_weight"] == 0 < history[-1]["domain_weight"] and "task_norm" not in history[0], "nothing below the output layer moves in the first epoch"
    assert all(row["applied"] <= 0.3 * row["task_norm"] + 1e-9 for row in history[1:])


def test_what_a_schedule_freezes_stays_bit_by_bit(persons, persons_run, tmp_path):
    start = load_checkpoint(persons_run / "model.safetensors")
    recipe = toy_recipe(persons, **TWO_USERS, start=str(persons_run), unfreezing={"schedule": "output@0 rest@never"}, optimiser__weight_decay=0.1, training__epochs=2)
    model, _ = fit(recipe, load_data(recipe, start=start), tmp_path, start=start)
    same = {k: torch.equal(v, start.state[k]) for k, v in model.state_dict().items()}
    assert all(ok for k, ok in same.items() if k.startswith("encoder.")) and not same["head.linear.weight"]
    assert any("running_mean" in k for k in same) and all(p.requires_grad for p in model.parameters())
    moving = override(recipe, {"unfreezing.freeze_statistics": False})
    other, _ = fit(moving, load_data(moving, start=start), tmp_path / "moving", start=start)
    assert not all(torch.equal(v, start.state[k]) for k, v in other.state_dict().items() if "running_mean" in k)


def test_an_anchor_holds_the_weights_back(persons, persons_run, tmp_path):
    start = load_checkpoint(persons_run / "model.safetensors")

    def distance(anchor):
        recipe = toy_recipe(persons, **TWO_USERS, start=str(persons_run), unfreezing={"anchor": anchor}, training__epochs=2)
        model, _ = fit(recipe, load_data(recipe, start=start), tmp_path / str(anchor), start=start)
        return sum(float((p.detach() - start.state[k]).square().sum()) for k, p in model.named_parameters())

    assert distance(10.0) < 0.5 * distance(0.0)


def test_weights_of_other_keys_are_carried_over_and_recorded(persons, persons_run, tmp_path):
    start = load_checkpoint(persons_run / "model.safetensors")
    recipe = toy_recipe(persons, **TWO_USERS, start=str(persons_run), data__charset="fingers", training__epochs=1, data__allow_leaks=True)
    fit(recipe, load_data(recipe, start=start), tmp_path, start=start)
    rows = {r["tensor"]: r["status"] for r in json.loads((tmp_path / "carried.json").read_text())["rows"]}
    assert rows["head.linear.weight"] == "mapped" and set(rows.values()) == {"loaded", "mapped"}


def test_the_classifier_does_not_change_the_first_draws(persons):
    plain = toy_recipe(persons, **TWO_USERS)
    judged = override(plain, {"domain.method": "dann"})
    models = []
    for recipe in (plain, judged):
        torch.manual_seed(0)
        model = build_model(recipe, 2, 16)
        plan_moves(recipe, model, load_data(recipe))
        models.append((model.state_dict(), torch.rand(1)))
    assert models[0][1] == models[1][1] and all(torch.equal(a, b) for a, b in zip(models[0][0].values(), models[1][0].values()))


def test_a_silent_band_and_few_electrodes_are_filled_as_the_recipe_says(persons):
    signal, lengths = torch.randn(1, 2000, 2, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([2000])
    signal[:, :, 1] = 0
    out = {}
    for fill, band in (("tile", "zeros"), ("interpolate", "zeros"), ("tile", "mirror")):
        torch.manual_seed(0)
        model = build_model(toy_recipe(persons, data__electrodes=16, data__electrode_fill=fill, data__empty_band=band), 2, 8).eval()
        features, n = model.encode(signal, lengths)
        assert torch.equal(model(signal, lengths).log_probs, model.head(features, n).log_probs)
        out[fill, band] = features
    assert len({float(f.sum()) for f in out.values()}) == 3


def test_what_a_block_keeps_frozen_is_frozen_after_training(corpus, tmp_path):
    line = "norm mlp(features=16) gpt2(weights=random,trainable=1,layers=3,heads=2)"
    recipe = toy_recipe(corpus, encoder=line, training__epochs=1)
    model, _ = fit(recipe, load_data(recipe), tmp_path)
    assert 0 < count_parameters(model) == count_parameters(build_model(recipe, 2, 16)) < sum(p.numel() for p in model.parameters())


def test_patience_waits_for_the_last_group(persons, persons_run, tmp_path):
    start, lengths = load_checkpoint(persons_run / "model.safetensors"), {}
    for schedule in ("", "output@0 rest@4/6"):
        recipe = toy_recipe(persons, **TWO_USERS, start=str(persons_run), training__epochs=6, training__patience=1, optimiser__lr=1e-9, unfreezing={"schedule": schedule})
        lengths[schedule] = len(fit(recipe, load_data(recipe, start=start), tmp_path / str(len(schedule)), start=start)[1])
    assert lengths[""] < 5 <= lengths["output@0 rest@4/6"], "epoch 4 is the first in which the rest moves"
