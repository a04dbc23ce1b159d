"The book: every experiment runs through papermill in smoke mode, and bad requests are refused before any work."
import json

import nbformat
import pytest

from semgbook.book import EXPERIMENTS, SUITES, BookError, build_report, check_parameters, declared_parameters, execute, remembered, run_experiment, run_suite
from semgbook.recipes import PRESETS
from semgbook.runs import read_run


@pytest.fixture(scope="module")
def out(tmp_path_factory): return tmp_path_factory.mktemp("runs")


def test_table_and_notebooks_agree(root):
    files = {p.name for p in (root / "nbs" / "experiments").glob("*.ipynb")}
    assert files == {e.notebook for e in EXPERIMENTS.values()}
    for e in EXPERIMENTS.values():
        declared = declared_parameters(root / "nbs" / "experiments" / e.notebook)
        assert check_parameters(declared, e.smoke, e.notebook) == e.smoke and set(e.presets) <= set(PRESETS)
        assert {"seed", "corpus", "overrides", "out_root", "preset_name"} <= set(declared)
        first = nbformat.read(root / "nbs" / "experiments" / e.notebook, 4).cells[0].source
        assert e.question in first.splitlines()[0]


@pytest.mark.parametrize("experiment, preset", [(e.id, p) for e in EXPERIMENTS.values() for p in e.presets])
def test_smoke_mode(experiment, preset, out):
    e = EXPERIMENTS[experiment]
    folder = run_experiment(experiment, {**e.smoke, "preset_name": preset}, out)
    assert {p.name for p in folder.iterdir()} >= set(e.leaves)
    for phase, (low, high) in e.bounds.items(): assert low <= read_run(folder).results["phases"][phase]["cer"] <= high
    assert remembered(folder / "notebook.ipynb")["state"] == "new"
    assert not list(out.glob(".*")), "nothing half-written is left"


def test_report_is_one_page_without_foreign_hosts(out, tmp_path):
    if not list(out.glob("*/results.json")): pytest.skip("needs the smoke runs of this module")
    page = build_report(out, tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 8 * 2**20
    for run in out.glob("*/results.json"): assert json.loads(run.read_text())["run_id"] in text
    import re
    assert not re.findall(r'(?:src|href)\s*=\s*["\']?(?:https?:)?//', text)


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
