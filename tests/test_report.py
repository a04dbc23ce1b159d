"The report shows what run folders hold: every number, its recordings, its run; nothing else, and it works offline in a browser."
import html
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from semgbook.book import EXPERIMENTS
from semgbook.charset import get_charset
from semgbook.recipes import override, preset
from semgbook.statistics import across_seeds
from semgbook.synthetic import project_root

NOTEBOOK = project_root() / "nbs" / "report.ipynb"


def rates(cer, low=None, high=None, n=500):
    third = cer / 3
    return {"loss": cer / 25, "cer": cer, "ier": third, "der": third, "ser": third, "missed": third, "extra": third, "wrong": third, "n_reference": n, "low": low, "high": high, "interval_of": "blocks", "macro": cer, "macro_std": 0.0}


def make_run(root, experiment, preset_name, seed, val, test, corpus="embedded", changes=None, method="", phases=None, leaks=(), said=""):
    "A run folder as `carry_out` leaves it, its numbers made up."
    recipe = preset(preset_name, {"training.seed": seed, "data.corpus": corpus, **({"method": method} if method else {}), **(changes or {})})
    folder = Path(root) / f"{experiment}-{preset_name}-s{seed}-{recipe.hash()}"
    folder.mkdir(parents=True)
    entries = {"train": rates(val - 1), "val": rates(val, val - 2, val + 3), "test": rates(test, test - 2, test + 3), **(phases or {})}
    results = {"run_id": folder.name, "experiment": experiment, "recipe_name": recipe.name, "method": recipe.method, "seed": seed, "split": recipe.data.split, "users": {"train": ["user1"], "val": ["user1"], "test": ["user0"]}, "test_users_seen": False,
               "start": [], "leaks": list(leaks), "notes": [], "protocol": {"val": "windows", "test": "whole sessions"}, "rate_hz": 2000.0, "parameters": 1000 + len(recipe.encoder), "epochs": 4, "steps": 40, "best_epoch": 3, "phases": entries, "sessions": []}
    charset, epoch = get_charset(recipe.data.charset), np.arange(4)
    log_probs = np.log(np.full((50, charset.n_classes), 1 / charset.n_classes))
    typed = charset.chars[0] * 3
    np.savez_compressed(folder / "examples.npz", log_probs=log_probs.astype(np.float16), frame_times=np.arange(50) / 100, press_times=np.array([0.1, 0.2, 0.3]), charset=recipe.data.charset, reference=typed, prediction=typed[:2], session="x")
    pd.DataFrame(dict(epoch=epoch, step=10 * (epoch + 1), train_loss=4.0 - epoch, val_loss=4.5 - epoch, train_cer=100.0 - 20 * epoch, val_cer=100.0 - 18 * epoch)).to_csv(folder / "history.csv", index=False)
    for name, content in (("recipe", recipe.to_dict()), ("results", results), ("provenance", {"commit": "0123456789abcdef", "dirty": False, "data_fingerprint": "feed0123", "device": "cpu", "seconds": 12.5, "training_seconds": 10.0}), ("status", {"state": "done"})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    if said:
        told = nbformat.v4.new_output("display_data", data={"application/vnd.semgbook.record+json": {"name": "recordings", "value": said}})
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("remember", outputs=[told])]), folder / "notebook.ipynb")
    return folder


def build(root, output):
    "Execute the report's cells on a folder of runs; the page, the Markdown, and the names the notebook leaves."
    names = {"display": lambda *_: None}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type != "code": continue
        source = f"runs_root = {str(root)!r}\noutput = {str(output)!r}" if "parameters" in cell.metadata.get("tags", []) else cell.source
        exec(compile(source, f"report.ipynb, cell {cell.id}", "exec"), names)  # noqa: S102 (our own notebook, quicker than a kernel)
    return Path(output).read_text(encoding="utf-8"), Path(output).with_suffix(".md").read_text(encoding="utf-8"), names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Runs of both papers: seeds, decoders, a study, people, two recipes of one name, a leak, an unfinished one."
    root = tmp_path_factory.mktemp("runs")
    for seed, test in enumerate((21.0, 23.0, 22.0)): make_run(root, "e20", "hybrid_gru_4_embedded", seed, 17.13 + seed, test)
    for name, test in (("hybrid_lstm_4_embedded", 31.7), ("hybrid_gru_4_tds_4_embedded", 19.3), ("hybrid_lstm_4_tds_4_embedded", 29.4)): make_run(root, "e20", name, 0, test - 3, test)
    make_run(root, "e10", "bilstm_generic_embedded", 0, 11.11, 33.33)
    make_run(root, "e12", "tds_decoded_embedded", 0, 12.5, 8.25, phases={"val_lm": rates(10.5), "test_lm": rates(6.75)})
    make_run(root, "e30", "bilstm_kao", 0, 12.0, 30.5, "fingers", {"training.epochs": 32})
    make_run(root, "e30", "bilstm_small", 0, 14.0, 41.25, "/a/place/people", said="semi-real")
    make_run(root, "e22", "tds_embedded", 0, 12.0, 9.5, changes={"method": "16 of 16"})
    make_run(root, "e22", "tds_embedded", 0, 55.0, 57.5, changes={"method": "4 of 16, evenly", "data.keep_electrodes": [0, 4, 8, 12]})
    for n, (a, b) in enumerate(((40.0, 44.0), (60.0, 64.0))):
        for seed, test in enumerate((a, b)): make_run(root, "e33", "bilstm_small", seed, 20.0, test, "users", method=f"a third person chooses (user{n} trains)", changes={"data.split_options": {"train_users": [f"user{n}"]}})
    for n, test in enumerate((30.0, 32.0)):
        make_run(root, "e50", "bilstm_small_finetuned", 0, 20.0, test, "users", method=f"everything, anchored, 30 s ({4 + n})", changes={"start": f"others-{n}", "unfreezing.anchor": 0.01, "data.train_minutes": 0.5})
    make_run(root, "e11", "tds_personal_embedded", 0, 5.0, 1.5, leaks=["test text was trained on"])
    stopped = root / "e25-hybrid_tds_2_embedded-s0-0000000a"
    stopped.mkdir()
    (stopped / "status.json").write_text(json.dumps({"state": "failed", "error": "RuntimeError('out of paper')", "epoch": 2}))
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return build(runs, tmp_path_factory.mktemp("out") / "report.html")


def cells_of(page, first):
    "The text of the cells of all table rows that hold a cell with this text."
    rows = [[html.unescape(c) for c in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in re.findall(r"<tr>(.*?)</tr>", page)]
    return [row for row in rows if first in row]


def test_a_mean_over_seeds_stands_beside_what_was_published(report):
    page, _, _ = report
    mean, low, high = across_seeds([21.0, 23.0, 22.0])
    published = EXPERIMENTS["e20"].published["GRU 4"]
    rows = cells_of(page, "GRU 4")
    assert rows and all(r[:3] == ["GRU 4", "simulated", "3"] for r in rows)
    assert all(f"{mean:.2f} [{low:.2f}, {high:.2f}]" in r and f"{published['test']['cer']:.2f}" in r and f"{published['val']['cer']:.2f}" in r for r in rows if len(r) > 6)


def test_people_whatever_they_are_called_are_averaged_over(report):
    page, _, _ = report
    mean, low, high = across_seeds([30.0, 32.0])
    row, = (r for r in cells_of(page, "everything, anchored, 30 s") if len(r) > 5)
    assert row[1:3] == ["simulated", "2"] and f"{mean:.2f} [{max(low, 0):.2f}, {high:.2f}]" in row


def test_published_tables_keep_their_form(report):
    page, _, _ = report
    want = EXPERIMENTS["e10"].published["BiLSTM"]
    for word, phase in (("validation", "val"), ("test", "test")):
        row = next(r for r in cells_of(page, "published: BiLSTM") if r[0] == word and f"{want[phase]['cer']:.2f}" in r)
        assert row[2] == "real" and row[4:] == [f"{want[phase][k]:.2f}" for k in ("loss", "cer", "ier", "der", "ser")]
    ours = [r for r in cells_of(page, "ours: BiLSTM") if r[0] == "test"]
    assert ["33.33 [31.33, 36.33]", "11.11", "11.11", "11.11"] == ours[0][5:] and ours[0][2] == "simulated"


def test_two_recipes_of_one_name_are_two_methods(report):
    "Of different width, on different recordings: never averaged, and each says what it was measured on."
    page, _, names = report
    assert {m: len(r) for m, r in names["groups"]["e30"].items()} == {"BiLSTM (bilstm_kao)": 1, "BiLSTM (bilstm_small)": 1}
    assert {r[2] for r in cells_of(page, "ours: BiLSTM (bilstm_small)")} == {"semi-real"} and {r[2] for r in cells_of(page, "ours: BiLSTM (bilstm_kao)")} == {"simulated"}


def test_people_count_once(report):
    "Two seeds each of two people: the mean of the people's means, its interval over people."
    rows = report[2]["evidence"]("e33", report[2]["groups"]["e33"]).query("phase == 'test'")
    _, low, high = across_seeds([42.0, 62.0])
    assert rows[["cer", "low", "high"]].values.tolist() == [[52.0, max(low, 0.0), high]] and rows.interval.tolist() == ["95 %, over 2 people"] and len(rows.runs.iloc[0]) == 4


def test_a_leaked_run_stands_beside_nothing(report):
    rows = report[2]["evidence"]("e11", report[2]["groups"]["e11"])
    ours = rows[rows.cer.notna()]
    assert (ours.method == "TDS, random start (LEAKED)").all() and ours.published.isna().all()


def test_every_decoder_is_there_and_the_first_is_shown(report):
    rows = report[2]["evidence"]("e12", report[2]["groups"]["e12"])
    assert dict(zip(rows[rows.phase == "test"].decoder, rows[rows.phase == "test"].cer)) == {"greedy": 8.25, "language model": 6.75}
    assert rows[(rows.phase == "test")].published.tolist() == [15.38, 9.55] and rows.published_as.str.contains("mean over users").all()


def test_sentences_are_made_from_the_rows(report):
    page, _, names = report
    assert "<strong>GRU 4 + CNN 4</strong> has the lowest test CER in ours (19.30 %, simulated) and as published (18.11 %, real)" in page
    rows = names["evidence"]("e20", names["groups"]["e20"])
    assert "+12.40 points in ours (simulated; 19.30 to 31.70 %" in names["change_sentence"](rows, "GRU 4 + CNN 4", "BiLSTM 4") and "+2.90 as published" in names["change_sentence"](rows, "GRU 4 + CNN 4", "BiLSTM 4")
    assert names["change_sentence"](rows, "GRU 4 + CNN 4", "nobody") == ""


def test_a_run_that_is_gone_takes_its_numbers_along(runs, report, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    for folder in copy.glob("e10-*"): shutil.rmtree(folder)
    page = build(copy, tmp_path / "report.html")[0]
    assert "33.33 [" in report[0] and "33.33 [" not in page and "ours is not run yet: <code>semgbook book paper_lstm</code>" in page
    assert f"{EXPERIMENTS['e10'].published['BiLSTM']['test']['cer']:.2f}" in page, "what was published stays"


def test_nothing_points_to_this_machine(report):
    page, markdown, _ = report
    assert "/a/place" not in page + markdown and str(project_root()) not in page + markdown
    assert not re.search(r"""\bsrc=["']?(?:https?:)?//|<link|@import""", re.sub(r"<script>.*?</script>", "", page, flags=re.S))


def test_every_run_has_a_card_and_the_unfinished_are_named(runs, report):
    page, _, names = report
    cards = json.loads(re.search(r'id="sg-cards">(.*?)</script>', page, re.S)[1])
    finished = {p.parent.name for p in runs.glob("*/results.json")}
    assert set(cards) == finished and all(override(preset("tds_embedded"), {}).to_dict().keys() == c["recipe"].keys() for c in cards.values())
    assert {c["recipe"]["data"]["corpus"] for c in cards.values()} == {"embedded", "fingers", "users", "people"}
    clickable = {run for spec in re.findall(r'<script type="application/json">(.*?)</script>', page, re.S) for trace in json.loads(spec)["data"] for run in (trace.get("meta") or {}).get("runs", [])}
    assert clickable == finished
    assert "out of paper" in page and "1 unfinished" in page


def test_markdown_shows_the_same_numbers_and_its_pictures(report, runs):
    page, markdown, names = report
    pictures = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    folder = Path(names["output"]).parent
    assert len(pictures) >= 8 and all((folder / p).stat().st_size > 3000 for p in pictures) and len(set(pictures)) == len(pictures)
    assert "| 33.33 [31.33, 36.33] |" in markdown and "## Paper 2" in markdown and len(page) < 8 * 2**20


def test_three_small_runs_make_a_page(tmp_path):
    "What `make book` leaves."
    root = tmp_path / "runs"
    for name in ("tds_embedded", "bilstm_embedded"): make_run(root, "e00", name, 0, 12.0, 8.0)
    make_run(root, "e30", "bilstm_kao", 0, 12.0, 30.5, "fingers")
    page, markdown, _ = build(root, tmp_path / "report.html")
    assert "3 finished runs of 3 methods in 2 experiments" in page and "unfinished" not in page.split("<h2")[0]
    assert page.count("published: BiLSTM") >= 6 and "semgbook book paper_hybrids" in page and "30.50 [" in markdown


# --- in a browser ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the extra `browser`")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium: pytest.skip("no chromium here")
    with driver.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page(browser, report, tmp_path_factory):
    "The report, open; at the end it has complained of nothing and asked nobody."
    path = tmp_path_factory.mktemp("open") / "report.html"
    path.write_text(report[0])
    tab = browser.new_page(viewport=dict(width=1200, height=900))
    tab.set_default_timeout(60_000)
    problems, asked = [], []
    tab.on("pageerror", lambda e: problems.append(str(e)))
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
    tab.goto(path.as_uri(), wait_until="commit")
    tab.wait_for_function("document.readyState == 'complete' && [...document.querySelectorAll('.sg-plotly')].every(p => p.closest('details:not([open])') || p.querySelector('.main-svg'))")
    yield tab
    assert not problems and not asked, (problems, asked)
    tab.close()


def figure_with(tab, method):
    "The first figure with a box for this method."
    return tab.locator("figure", has=tab.locator(".sg-choose label", has_text=re.compile(f"^{re.escape(method)}$"))).first


def test_a_method_can_be_left_out_and_brought_back(page):
    figure = figure_with(page, "GRU 4")
    ticks, height = (lambda: figure.locator(".ytick").all_text_contents()), figure.locator(".sg-plotly").bounding_box()["height"]
    before = ticks()
    assert "GRU 4" in before
    box = figure.locator(".sg-choose label", has_text=re.compile("^GRU 4$")).locator("input")
    box.uncheck()
    assert ticks() == [t for t in before if t != "GRU 4"] and figure.locator(".sg-plotly").bounding_box()["height"] < height
    box.check()
    assert ticks() == before


def test_the_decoder_can_be_switched(page):
    figure = page.locator("figure", has=page.locator(".sg-choose label", has_text="language model")).first
    numbers = lambda: figure.locator(".textpoint").all_text_contents()
    assert any("8.2" in n for n in numbers()) and not any("6.8" in n for n in numbers())
    figure.locator(".sg-choose label", has_text="language model").locator("input").check()
    assert any("6.8" in n for n in numbers()) and not any("8.2" in n for n in numbers())


def test_a_click_shows_the_recipe_of_the_run(page):
    figure = figure_with(page, "GRU 4")
    figure.scroll_into_view_if_needed()
    bar = figure.locator(".bars .point path").first.bounding_box()
    page.mouse.move(bar["x"] + 12, bar["y"] + bar["height"] / 2)
    page.mouse.click(bar["x"] + 12, bar["y"] + bar["height"] / 2)
    card = page.locator("#sg-card")
    card.wait_for()
    text = card.inner_text()
    assert "e20-hybrid_" in text and "simulated, corpus embedded" in text and '"encoder"' in text
    card.locator("button").click()
    assert card.count() == 0


def test_what_is_folded_draws_when_it_is_opened(page):
    fold = page.locator("details", has_text="Learning curves").first
    assert fold.locator(".main-svg").count() == 0
    fold.locator("summary").click()
    fold.locator(".sg-plotly .main-svg").first.wait_for()
    assert fold.locator(".sg-plotly").first.bounding_box()["width"] > 600


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size(dict(width=width, height=900))
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
