"Runs stand beside each other when they differ in what is varied; published values and sentences follow the method."
import json
from pathlib import Path

import pandas as pd
import pytest

from semgbook.book import EXPERIMENTS
from semgbook.comparisons import VARIED, by_source, comparable, published_beside, published_for, study_rows, study_sentences
from semgbook.recipes import preset
from semgbook.runs import RunRecord, methods_table, own_facts


def test_a_study_is_an_experiment(): assert set(VARIED) <= set(EXPERIMENTS)


def record(method="2000 Hz", seed=0, cer=9.0, **changes):
    "A finished run that nobody carried out."
    recipe = preset("tds_embedded", {"method": method, "training.seed": seed, **changes})
    results = {"method": method, "seed": seed, "leaks": [], "parameters": 10, "epochs": 60, "steps": 780, "phases": {p: {"cer": cer} for p in ("val", "test")}}
    return RunRecord(Path("none"), recipe, results, pd.DataFrame(), {})


def test_only_runs_that_differ_in_what_is_varied_are_compared():
    base, other_seed, held = record(), record(seed=1, cer=11.0), record("250 Hz, held", cer=12.0, **{"data.rate_factor": 8, "data.rate_method": "hold"})
    strangers = [record(**{"optimiser.lr": 1e-3}), record(**{"training.epochs": 5}), record(**{"data.keep_electrodes": [0, 8]})]
    found = comparable("e23", [base, *strangers, other_seed, held, record(cer=50.0)], base.recipe)
    assert list(map(id, found)) == list(map(id, [base, other_seed, held])), "and the same method and seed once, the first of them"
    rows = study_rows("e23", found)
    test = rows[rows.phase == "test"].set_index("method")
    assert test.cer.to_dict() == {"2000 Hz": 10, "250 Hz, held": 12} and test.published["250 Hz, held"] == EXPERIMENTS["e23"].published["250 Hz, held"]["test"]["cer"]
    assert rows[(rows.phase == "val") & (rows.method == "250 Hz, held")].published.isna().all(), "not published"
    sentences = study_sentences(rows[rows.phase == "test"], "made-up")
    assert "10.00 % [0.00, " in sentences[0] and "made-up recordings, 780 steps, 60 epochs, 10 parameters" in sentences[0] and sentences[1].endswith("one seed")


def transferred(root, start, seed, source_epochs=60):
    "A run that starts from a source of its own seed."
    (root / start).mkdir()
    (root / start / "recipe.json").write_text(json.dumps(preset("source_simulated", {"training.seed": seed, "training.epochs": source_epochs}).to_dict()))
    results = {"method": "M, from typing", "seed": seed, "parameters": 1, "epochs": 1, "steps": 1, "leaks": [], "phases": {"test": {"cer": 10.0 + seed}}}
    return RunRecord(root / f"from-{start}", preset("bilstm_small_warm", {"start": start, "training.seed": seed}), results, pd.DataFrame(), {})


def test_sources_are_told_apart_but_their_seeds_are_not(tmp_path):
    runs = [transferred(tmp_path, f"s{seed}", seed) for seed in range(3)]
    with pytest.raises(ValueError, match="start"): methods_table(runs)
    assert methods_table(by_source(runs)).n_seeds.tolist() == [3]
    mixed = by_source([*runs, transferred(tmp_path, "short", 0, 2)])
    assert methods_table(comparable("e31", mixed, runs[0].recipe)).n_seeds.tolist() == [3, 1]


def test_published_values_follow_the_method_and_not_its_source():
    assert published_for("e31", "BiLSTM, transfer as published, from other persons")["test"]["cer"] == 21.522
    assert not published_for("e31", "BiLSTM, transfer, own warm-ups, from other persons") and published_for("e31", "BiLSTM")["val"]["cer"] == 2.089


def test_costs_are_those_at_the_rate_and_with_the_electrodes_of_a_run():
    base, slow, few = (own_facts(r) for r in (record(), record(**{"data.rate_factor": 4}), record(**{"data.keep_electrodes": [0, 4, 8, 12]})))
    assert slow["field_ms"] == pytest.approx(4 * base["field_ms"]) and slow["mmacs_per_s"] == pytest.approx(base["mmacs_per_s"] / 4)
    assert few["field_ms"] == base["field_ms"] and few["parameters"] < base["parameters"]


def test_leaked_runs_and_unpublished_values_are_marked():
    results = {"method": "BiLSTM", "leaks": ["the test was trained on"], "phases": {p: {"cer": 30.0} for p in ("val", "test")}}
    table = published_beside("e30", results)
    assert set(table.index.get_level_values("whose")) == {"this run (LEAKED)", "published"} and table.loc[("test", "published"), "cer"] == 22.913
    assert table.loc[("test", "published"), "macro"] == "–" and len(published_beside("e30", {**results, "method": "mine"})) == 2
