"The book: every experiment runs through papermill in smoke mode, and bad requests are refused before any work."
import json
import re

import nbformat
import pytest

from semgbook.book import (EXPERIMENTS, HYBRID_GROUPS, SUITES, BookError, amount_choices, at_lower_rate, augmentation_choices, build_report, calibration_choices,
                           electrode_choices, for_new_person, planned_folder, rate_choices, run_experiment, two_choosers, unfreezing_choices)
from semgbook.comparisons import VARIED
from semgbook.notebooks import NotebookError, check_parameters, declared_parameters, remembered
from semgbook.recipes import HYBRIDS, PRESETS, differences, preset, requested
from semgbook.runs import read_run
from semgbook.training import build_model, sample_stride, split_corpus


def test_table_and_notebooks_agree(root):
    files = {p.name for p in (root / "nbs" / "experiments").glob("*.ipynb")}
    assert files == {e.notebook for e in EXPERIMENTS.values()}
    for e in EXPERIMENTS.values():
        declared = declared_parameters(root / "nbs" / "experiments" / e.notebook)
        assert check_parameters(declared, e.smoke, e.notebook) == e.smoke and set(e.presets) <= set(PRESETS)
        assert {"seed", "corpus", "overrides", "out_root", "preset_name"} <= set(declared)
        first = nbformat.read(root / "nbs" / "experiments" / e.notebook, 4).cells[0].source
        assert e.question in first.splitlines()[0]


def smoke(experiment, root):
    "The small run of an experiment (its other presets differ in the recipe only: test_training); its folder."
    e = EXPERIMENTS[experiment]
    folder = run_experiment(experiment, e.smoke, root)
    assert folder == planned_folder(experiment, e.smoke, root), "the runner knows beforehand which run a notebook carries out"
    results = read_run(folder).results
    assert {p.name for p in folder.iterdir()} >= set(e.leaves)
    for phase, (low, high) in e.bounds.items(): assert low <= results["phases"][phase]["cer"] <= high
    assert remembered(folder / "notebook.ipynb")["state"] == "new"
    assert not list(root.glob(".*")), "nothing half-written is left"
    return folder


REPORTED = ("e12", "e30")  # beam search and language model; with and without rest


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e not in REPORTED])
def test_smoke_mode(experiment, tmp_path): smoke(experiment, tmp_path)


@pytest.mark.parametrize("experiment", REPORTED)
def test_smoke_mode_and_report(experiment, tmp_path):
    folder = smoke(experiment, tmp_path)
    page = build_report(tmp_path, tmp_path / "report.html")
    markup = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    assert folder.name in markup and page.stat().st_size < 8 * 2**20
    assert not re.findall(r"""<link\b|\bsrc\s*=\s*["']?(?:https?:)?//""", markup), "the page must open offline"
    stamp = page.stat().st_mtime_ns
    assert build_report(tmp_path, page, force=False).stat().st_mtime_ns == stamp, "nothing new, nothing rebuilt"


@pytest.mark.parametrize("given, words", [({"sede": 1}, "seed"), ({"seed": "1"}, "seed"), ({"seed": 1.5}, "int"), ({"seed": True}, "seed"), ({"corpus": 3}, "str")])
def test_refused_before_any_work(given, words, tmp_path):
    with pytest.raises(NotebookError, match=words): run_experiment("e00", given, tmp_path)
    assert not list(tmp_path.iterdir())


def test_suites_name_what_exists(root):
    for entries in SUITES.values():
        for experiment, parameters in entries:
            e = EXPERIMENTS[experiment]
            check_parameters(declared_parameters(root / "nbs" / "experiments" / e.notebook), parameters, e.notebook)


# --- the studies --------------------------------------------------------------------------------

STUDIES = ("electrodes", "rates", "amounts", "augmentations")


@pytest.mark.parametrize("name", SUITES)
def test_every_entry_is_a_recipe_of_its_own(name):
    "No two entries share a run folder, which does not know how a figure calls them; each can be read as a recipe."
    said = ("preset_name", "seed", "corpus", "overrides")  # what else is given decides other parts of a recipe, in the notebook
    asked = [(f"{e} {[(k, v) for k, v in p.items() if k not in said]}", requested(p["preset_name"], p.get("seed", 0), p.get("corpus", "embedded"), p.get("overrides", "{}"))) for e, p in SUITES[name] if "preset_name" in p]
    assert len({(e, r.name, r.hash()) for e, r in asked}) == len(asked)
    assert len({(e, r.name, r.method, r.training.seed) for e, r in asked}) == len(asked), "a method is one choice"


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("where", ["", "_89335547"])
def test_a_study_varies_what_it_says_and_nothing_else(name, where):
    runs = [(e, requested(p["preset_name"], 0, p.get("corpus", "embedded"), p["overrides"])) for e, p in SUITES[name + where] if p["seed"] == 0]
    base = runs[0][1]
    for e, r in runs[1:]:
        changed = set(differences(r, base))
        assert changed and all(place.startswith(VARIED[e]) for place in changed), f"{r.method}: {changed}"
    assert set(EXPERIMENTS[runs[0][0]].published) <= {r.method for _, r in runs}, "published values stand under labels of runs"


@pytest.mark.parametrize("name", ["hybrids", "gpt2", "gpt2_89335547", "paper_hybrids", "paper_hybrids_89335547"])
def test_all_stacks_of_a_suite_can_stand_in_one_figure(name):
    recipes = [requested(p["preset_name"], p["seed"], p.get("corpus", "embedded")) for e, p in SUITES[name] if e in ("e20", "e21")]
    outside = {place for r in recipes for place in differences(r, recipes[0]) if not place.startswith(("training.seed", *VARIED["e20"]))}
    assert not outside


@pytest.mark.parametrize("name", ["tds_embedded", "hybrid_tds_4", "bilstm_embedded"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_lower_rate_keeps_the_milliseconds(name, factor):
    "As many frames, as far apart and as long; jitter and crop as long; the future as far."
    recipe = preset(name, {"augment.crop": [400, 80]})
    slow = preset(name, {"augment.crop": [400, 80], **at_lower_rate(recipe, factor)})
    models = [build_model(r, 2, 16) for r in (recipe, slow)]
    windows = [sum(r.data.samples(2000)) for r in (recipe, slow)]
    assert windows[1] == windows[0] + 32 * factor and slow.data.right_context_s == recipe.data.right_context_s
    assert models[0].out_lengths(windows[0]) == models[1].out_lengths(windows[1]) and sample_stride(models[0]) == sample_stride(models[1])
    for count in (lambda r: r.front_end.n_fft, lambda r: r.front_end.hop, lambda r: r.augment.alignment_jitter, lambda r: r.augment.crop[0], lambda r: r.augment.crop[1]):
        assert count(slow) * factor == count(recipe)


def test_a_rate_that_does_not_divide_is_refused():
    with pytest.raises(BookError, match=r"front_end\.n_fft = 64.*another factor"): at_lower_rate(preset("tds_embedded"), 3)


def test_only_decimation_changes_the_front_end():
    for c in rate_choices(preset("tds_embedded"))[1:]:
        assert ("front_end.hop" in c) == (c.get("data.rate_method", "decimate") == "decimate")


def test_equal_steps_are_those_of_all_the_data():
    choices = {c["method"]: c for c in amount_choices(60.0, 900)}
    assert choices["100 %"] == {"method": "100 %"}
    assert [(choices[f"{p} %, equal {of}"]["data.train_minutes"], choices[f"{p} %, equal {of}"].get("training.steps")) for p in (50, 10) for of in ("epochs", "steps")] == [(30, None), (30, 900), (6, None), (6, 900)]


def test_each_augmentation_is_taken_away_alone():
    recipe = preset("hybrid_tds_4")
    changed = {c["method"]: set(differences(preset("hybrid_tds_4", c), recipe)) for c in augmentation_choices(recipe)}
    without = [places for method, places in changed.items() if method.startswith("without")]
    assert set.union(*without) == changed["none"] and sum(map(len, without)) == len(changed["none"]) and not changed["full recipe"]
    assert next(c for c in augmentation_choices(recipe) if "cropping" in c["method"])["augment.crop"] == [1800, 200], "all the context, and no more"


def test_electrodes_are_chosen_before_and_after_the_rotation():
    for c in electrode_choices()[1:]: assert len(c["data.keep_electrodes"]) == int(c["method"].split()[0]) and c.get("data.after_rotation", False) == ("after" in c["method"])


def test_the_second_report_is_complete():
    "Every stack with a published rate is in a group or is its language model, and the suite trains every group and the electrodes of the best."
    grouped = {e for stacks in HYBRID_GROUPS.values() for e in stacks}
    assert {e for e, (_, val, _) in HYBRIDS.items() if val} <= grouped | {"tds_4_gpt2_2", "tds_4_gpt2_1"}
    for where, name in (("", "hybrid_{}_embedded"), ("_89335547", "hybrid_{}")):
        entries = SUITES["paper_hybrids" + where]
        assert {p["preset_name"] for e, p in entries if e == "e20"} == {name.format(e) for e in grouped}
        assert len({p["overrides"] for e, p in entries if e == "e22"}) == len(electrode_choices())


def test_smoke_runs_of_the_studies_are_choices_of_theirs():
    "What a smoke run leaves stands under a label with the same changes as in the suite, but for its length."
    for name, e in (("electrodes", "e22"), ("rates", "e23"), ("amounts", "e24"), ("augmentations", "e25")):
        smoke = {k: v for k, v in json.loads(EXPERIMENTS[e].smoke["overrides"]).items() if not k.startswith("training")}
        choices = [{k: v for k, v in json.loads(p["overrides"]).items() if not k.startswith("training")} for _, p in SUITES[name]]
        assert smoke in choices


# --- transfer, choosers, calibration ------------------------------------------------------------

def stretches(parts): return [(p.session.name, p.start, p.stop) for p in parts]


def test_two_choosers_train_and_test_alike():
    known, third = two_choosers(preset("bilstm_small", {"data.corpus": "users"}), "user3", "user8")
    a, b = split_corpus(known), split_corpus(third)
    assert stretches(a.train) == stretches(b.train) and stretches(a.test) == stretches(b.test) and len(a.users("test")) == 8
    assert a.users("val") == a.users("train") == ("user3",) and b.users("val") == ("user8",)
    assert all(place.startswith(("data.split", "data.train_minutes")) for place in differences(third, known))


def test_a_new_person_and_a_stranger_stay_out_of_the_source():
    tuned, others = for_new_person(preset("bilstm_small_finetuned", {"data.corpus": "users"}), preset("source_persons", {"data.corpus": "users"}), "user3")
    (new,), (stranger,) = (tuned.data.split_options[k] for k in ("train_users", "test_users"))
    assert new == "user3" and stranger != new and set(others.data.split_options["train_users"]) == {f"user{n}" for n in range(10)} - {new, stranger}
    elsewhere = for_new_person(preset("bilstm_small_finetuned", {"data.corpus": "fingers"}), preset("source_persons", {"data.corpus": "users"}))[1].data.split_options
    assert elsewhere["test_users"] and not set(elsewhere["test_users"]) & set(elsewhere["train_users"]), "a source from another corpus has somebody to test on as well"
    with pytest.raises(BookError, match="user3"): for_new_person(tuned, others, "usr3")


def test_choices_of_transfer_differ_in_what_they_say():
    for name, choices, varied in (("bilstm_small_warm", unfreezing_choices(), ("unfreezing.",)), ("bilstm_small_finetuned", calibration_choices((30, 300)), ("unfreezing.", "data.", "training."))):
        recipes = [preset(name, c) for c in choices]
        assert len({r.hash() for r in recipes}) == len({r.method for r in recipes}) == len(recipes)
        assert all(place.startswith(varied) for r in recipes for place in differences(r, preset(name)))
