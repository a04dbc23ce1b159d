"Run folders: believed when done, recognised when not, the same after a kill."
import json
import os
import signal
import subprocess
import sys

import pytest
from toys import toy_corpus, toy_recipe

from semgbook.repro import atomic_write
from semgbook.runs import carry_out, list_runs, read_run, run_state, runs_table, start_run

WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from toys import toy_recipe
from semgbook.runs import carry_out, start_run
carry_out(start_run("e99", toy_recipe(Path({corpus!r}), training__epochs=6), Path({root!r})), print)
"""
FILES = {"recipe.json", "results.json", "history.csv", "provenance.json", "status.json", "model.safetensors", "examples.npz"}


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
