"The book: every experiment runs through papermill in smoke mode, and bad requests are refused before any work."
import re

import nbformat
import pytest

from semgbook.book import EXPERIMENTS, SUITES, BookError, build_report, check_parameters, declared_parameters, execute, remembered, run_experiment, run_suite
from semgbook.recipes import PRESETS
from semgbook.runs import read_run


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
    with pytest.raises(BookError, match=words): run_experiment("e00", given, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lost_tag_is_refused(tmp_path):
    notebook = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("seed = 0")]), notebook)
    with pytest.raises(BookError, match="parameters"): execute(notebook, tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_notebook_is_kept_with_its_traceback(tmp_path):
    cell = nbformat.v4.new_code_cell("seed = 0")
    cell.metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell("1 / seed")]), tmp_path / "n.ipynb")
    with pytest.raises(Exception, match="ZeroDivision"): execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {"seed": 0})
    assert "ZeroDivisionError" in (tmp_path / "out.ipynb").read_text() and not (tmp_path / "out.partial.ipynb").exists()


def test_suites_name_what_exists(root):
    for entries in SUITES.values():
        for experiment, parameters in entries:
            e = EXPERIMENTS[experiment]
            check_parameters(declared_parameters(root / "nbs" / "experiments" / e.notebook), parameters, e.notebook)


def test_a_failing_run_does_not_stop_the_suite(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "broken", (("e00", {"corpus": "no such corpus"}), ("e00", {"overrides": "{"})))
    rows = run_suite("broken", tmp_path, say=lambda line: None)
    assert len(rows) == 2 and all(error for *_, error in rows)
