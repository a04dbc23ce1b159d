"Run folders: believed when done, recognised when not, the same after a kill."
import json
import os
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from toys import toy_corpus, toy_recipe, two_users

from semgbook.inference import evaluate, probe_user, readers_of, score_recalibrated
from semgbook.metrics import count_errors_after_backspaces, count_errors_many, total_errors
from semgbook.repro import atomic_write
from semgbook.runs import begun_from, carry_out, list_runs, open_model, planned_run, read_run, read_texts, run_state, runs_table, start_run
from semgbook.splits import SplitError
from semgbook.training import build_model, load_data

WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from toys import toy_recipe
from semgbook.runs import carry_out, start_run
carry_out(start_run("e99", toy_recipe(Path({corpus!r}), training__epochs=6), Path({root!r})), print)
"""
FILES = {"recipe.json", "results.json", "history.csv", "provenance.json", "status.json", "model.safetensors", "examples.npz", "texts.csv"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return toy_corpus(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    run = start_run("e99", toy_recipe(corpus, training__epochs=6), tmp_path_factory.mktemp("runs"))
    carry_out(run, lambda line: None)
    return run


def test_a_finished_folder_is_complete(finished):
    assert run_state(finished.folder) == "done" and {p.name for p in finished.folder.iterdir()} == FILES
    facts = json.loads((finished.folder / "provenance.json").read_text())
    assert facts["data_fingerprint"] == finished.data_fingerprint and facts["seed"] == 0 and facts["versions"]["torch"] and facts["device"]


def test_results_hold_every_published_rate_and_their_counts(finished):
    results = read_run(finished.folder).results
    for phase in ("train", "val", "test"):
        entry = results["phases"][phase]
        assert entry["loss"] > 0 and entry["cer"] == pytest.approx(entry["ier"] + entry["der"] + entry["ser"])
        assert (entry["ier"], entry["der"], entry["ser"]) == (entry["missed"], entry["extra"], entry["wrong"])
        assert entry["cer"] == pytest.approx(100 * (entry["n_missed"] + entry["n_extra"] + entry["n_wrong"]) / entry["n_reference"])
        assert results["protocol"][phase]
    assert sum(r["n_reference"] for r in results["sessions"]) == results["phases"]["test"]["n_reference"]
    assert "seconds" not in json.dumps(results), "times belong into provenance.json, or results would not repeat"


@pytest.mark.parametrize("phase", ["val", "test"])
def test_the_kept_texts_give_the_reported_numbers(finished, phase):
    record = read_run(finished.folder)
    texts, entry = read_texts(record, phase), record.results["phases"][phase]
    counts = total_errors(count_errors_many([t.reference for t in texts], [t.prediction for t in texts]))
    assert (counts.cer, counts.n_reference, counts.n_predicted) == (entry["cer"], entry["n_reference"], entry["n_predicted"])
    assert entry["macro"] == pytest.approx(entry["cer"]) and entry["macro_std"] == 0 and entry["n_users"] == 1, "one user: micro and macro agree"
    assert entry["interval_of"] == "blocks" and (entry["low"], entry["high"]) == (None, None), "fewer characters than two blocks: no interval is better than a wrong one"
    with pytest.raises(ValueError, match="test_lm"): read_texts(record, "test_lm")
    after = total_errors([count_errors_after_backspaces(t.reference, t.prediction) for t in texts]).cer
    assert entry.get("cer_after_backspaces") == (after if phase == "test" else None), "said of whole sessions only"


def test_other_decoders_stand_beside_the_greedy_numbers(corpus, finished, tmp_path):
    "Same weights, same emissions: the greedy phases stay what they were, the others are added; the sweep's best pair is the tuned one."
    recipe = toy_recipe(corpus, training__epochs=6, decoding__beam=8, decoding__lm="embedded", decoding__sweep=True)
    results = carry_out(run := start_run("e99", recipe, tmp_path), lambda line: None)
    greedy = json.loads((finished.folder / "results.json").read_text())["phases"]
    assert {p: results["phases"][p] for p in greedy} == greedy
    assert set(results["phases"]) - set(greedy) == {f"{p}_{d}" for p in ("val", "test") for d in ("beam", "lm", "lm_tuned")}
    sweep = pd.read_csv(run.folder / "sweep.csv")
    assert results["phases"]["val_lm_tuned"]["cer"] == pytest.approx(sweep.cer.min())
    at_published = sweep[(sweep.lm_weight == 2) & (sweep.insertion_bonus == 2)].cer.item()
    assert results["phases"]["val_lm"]["cer"] == pytest.approx(at_published)


def test_a_recalibrated_test_is_a_phase_of_its_own(corpus, finished, tmp_path):
    "Asked for, every other phase stays what it was; the new one is about the same text, with rest and without."
    results = carry_out(start_run("e99", toy_recipe(corpus, training__epochs=6, decoding__recalibrate=True), tmp_path), lambda line: None)
    plain = json.loads((finished.folder / "results.json").read_text())["phases"]
    assert {p: results["phases"][p] for p in plain} == plain and set(results["phases"]) - set(plain) == {"test_recalibrated"}
    assert results["phases"]["test_recalibrated"]["n_reference"] == plain["test"]["n_reference"]
    babbling = toy_recipe(corpus, blank_bias=0.0, decoding__recalibrate=True)
    torch.manual_seed(0)
    model, data = build_model(babbling, 2, 16).eval(), load_data(babbling)
    with torch.no_grad(): next(iter(model.encoder.blocks.values())).norm.running_mean += 0.3
    read = {phase: rows[0].prediction for phase, rows in evaluate(babbling, model, data, readers_of(babbling, data.charset))[1].items()}
    assert read["test_recalibrated"] != read["test"] and read["test_recalibrated"] == score_recalibrated(model, data.split.test, data.charset, babbling)[0].prediction
    with pytest.raises(ValueError, match="recalibrate.*begins with norm"): toy_recipe(corpus, encoder="rolling(settle=20) norm mlp(features=16)", decoding__recalibrate=True)


def test_a_missing_language_model_is_missed_before_training(corpus, tmp_path):
    recipe = toy_recipe(corpus, decoding__beam=8, decoding__lm=str(tmp_path / "nowhere.arpa"))
    with pytest.raises((ValueError, OSError), match="nowhere.arpa"): carry_out(run := start_run("e99", recipe, tmp_path), lambda line: None)
    assert run_state(run.folder) == "failed" and not (run.folder / "last.ckpt").exists()


def test_a_personal_run_begins_with_the_generic_one(corpus, finished, tmp_path):
    asked = toy_recipe(corpus, training__epochs=1, start="generic")
    recipe = begun_from(asked, finished)
    assert recipe.start == finished.run_id and begun_from(toy_recipe(corpus), finished) == toy_recipe(corpus)
    shutil.copytree(finished.folder, tmp_path / finished.run_id)
    said = []
    results = carry_out(run := start_run("e98", recipe, tmp_path), said.append)
    assert said[0].startswith("100 % of the weights come from ") and said[1].startswith("epoch 1/1") and len(said) == 2
    assert results["start"] == [finished.run_id] and not results["leaks"] and planned_run("e98", recipe, tmp_path).folder == run.folder
    with pytest.raises(ValueError, match="generic"): carry_out(start_run("e98", asked, tmp_path), lambda line: None)


def test_a_leak_is_refused_or_written_on_every_row(tmp_path):
    corpus, root = toy_corpus(tmp_path / "four", n_sessions=4), tmp_path / "runs"
    first = start_run("e99", toy_recipe(corpus, training__epochs=1, data__split_options={"val": 2, "test": 1}), root)
    carry_out(first, lambda line: None)
    leaky = dict(training__epochs=1, start=first.run_id, data__split_options={"val": 1, "test": 2})
    with pytest.raises(SplitError, match="toy-2"): carry_out(start_run("e99", toy_recipe(corpus, **leaky), root), lambda line: None)
    marked = start_run("e99", toy_recipe(corpus, **leaky, data__allow_leaks=True), root)
    assert "toy-2" in carry_out(marked, lambda line: None)["leaks"][0]
    heir = start_run("e99", toy_recipe(corpus, training__epochs=1, start=marked.run_id, data__allow_leaks=True, data__split_options={"val": 1, "test": 1}), root)
    assert carry_out(heir, lambda line: None)["leaks"], "what was accepted once is inherited"
    table = runs_table(list_runs(root))
    assert {r: m.endswith("(LEAKED)") for r, m in zip(table.run_id, table.method)} == {first.run_id: False, marked.run_id: True, heir.run_id: True}


def test_same_recipe_same_results_file(corpus, finished, tmp_path):
    run = start_run("e99", toy_recipe(corpus, training__epochs=6), tmp_path)
    carry_out(run, lambda line: None)
    assert (run.folder / "results.json").read_bytes() == (finished.folder / "results.json").read_bytes()


def test_kill_and_resume_reach_the_same_results(corpus, finished, tmp_path):
    code = WORKER.format(tests=os.path.dirname(__file__), corpus=str(corpus), root=str(tmp_path))
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for line in worker.stdout:
        if line.startswith("epoch 2/"): break
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    folder, = tmp_path.iterdir()
    assert run_state(folder) == "interrupted" and not (folder / "results.json").exists()
    with pytest.raises(ValueError, match="interrupted"): read_run(folder)
    epochs = []
    carry_out(start_run("e99", toy_recipe(corpus, training__epochs=6), tmp_path), epochs.append)
    assert len(epochs) < 6, "finished epochs are not repeated"
    assert (folder / "results.json").read_bytes() == (finished.folder / "results.json").read_bytes()


def test_a_live_run_is_left_alone(corpus, tmp_path):
    run = start_run("e99", toy_recipe(corpus), tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        atomic_write(run.folder / "status.json", json.dumps({"state": "running", "pid": sleeper.pid, "host": os.uname().nodename}))
        with pytest.raises(RuntimeError, match=str(sleeper.pid)): start_run("e99", toy_recipe(corpus), tmp_path)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert start_run("e99", toy_recipe(corpus), tmp_path).state == "interrupted"


def test_a_failure_is_written_down(corpus, tmp_path):
    recipe = toy_recipe(corpus, data__window_s=1000.0)
    run = start_run("e99", recipe, tmp_path)
    with pytest.raises(ValueError, match="window"): carry_out(run, lambda line: None)
    status = json.loads((run.folder / "status.json").read_text())
    assert run.state == "failed" and "Traceback" in status["traceback"]


def test_a_torn_file_is_named(finished, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "status.json").write_text("{")
    with pytest.raises(ValueError, match="status.json"): run_state(tmp_path / "x")


def test_changed_data_or_recipe_is_another_run(corpus, finished, tmp_path):
    assert start_run("e99", toy_recipe(corpus, training__epochs=7), tmp_path).run_id != finished.run_id
    longer = toy_corpus(tmp_path / "longer", seconds=30.0)
    assert start_run("e99", toy_recipe(longer, training__epochs=6), tmp_path).run_id != finished.run_id


def test_table_has_a_row_per_phase(finished):
    table = runs_table(list_runs(finished.folder.parent))
    assert set(table.phase) == {"train", "val", "test", "test_windowed"} and set(table.run_id) == {finished.run_id}
    assert list_runs(finished.folder.parent, "e00") == []


def test_history_is_one_row_per_epoch(finished):
    history = read_run(finished.folder).history
    assert history.epoch.tolist() == list(range(6)) and history.step.is_monotonic_increasing


# --- who is typing ------------------------------------------------------------------------------

def test_a_run_of_two_users_is_probed_and_one_of_one_user_is_not(finished, tmp_path):
    "The stored weights give the stored probe, whatever mode the model is in; one user has nothing to be told from."
    assert "probe" not in read_run(finished.folder).results
    recipe = two_users(tmp_path / "corpus", augment__noise_std=[0.5, 1.0])
    stored = carry_out(run := start_run("e99", recipe, tmp_path / "runs"), lambda line: None)["probe"]
    model, _, _ = open_model(run.folder)
    assert stored["chance"] == 0.5 and stored["low"] <= stored["accuracy"] <= stored["high"] and stored["n_users"] == 2
    assert probe_user(model.train(), load_data(recipe)) == stored, "without augmentation, in evaluation mode"
    assert model.training, "and back"


def test_a_probe_that_cannot_be_is_written_down(tmp_path):
    "Two windows per user: the training is kept, and the results say why there is no number."
    probe = carry_out(start_run("e99", two_users(tmp_path / "corpus", seconds=8.0, val_fraction=0.5), tmp_path / "runs"), lambda line: None)["probe"]
    assert "rows" in probe["refused"] and probe["n_windows"] == 4 and "accuracy" not in probe
