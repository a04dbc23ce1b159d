"A page holds all that it shows, asks nobody for anything, and says the same as its Markdown."
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from test_figures import COMPARED, EXAMPLES, ROWS
from test_print_figures import EXAMPLES as PRINT_EXAMPLES

from semgbook.figures import FIGURES, FigureError, beside_bars, error_bars
from semgbook.pages import Drawn, Fold, block_html, figure_div, plotly_script, table_html, table_markdown, text_html, write_markdown, write_page
from semgbook.print_figures import PRINT_FIGURES, print_beside


def test_div_is_valid_and_safe():
    div = figure_div(error_bars(ROWS.assign(method="</script><script>alert(1)</script>"), "a & b"), "one")
    data = re.search(r'<script type="application/json">(.*?)</script>', div, re.S)[1]
    spec = json.loads(data)
    assert spec["data"] and "title" not in spec["layout"] and div.count("<script") == 1 and 'id="one"' in div
    assert "sendChartToCloud" not in json.dumps(spec["config"])


def test_plotly_comes_from_the_package_and_stands_alone():
    script = plotly_script()
    assert script.count("</script>") == 2 and "plotly.js v" in script[:400] and not re.search(r"<script[^>]+src", script)


def test_table():
    table = pd.DataFrame(dict(name=["a<b", "c"], cer=[1.234, np.nan], n=[3, 4], seen=[True, False], note=[None, "x"]))
    out = table_html(table)
    assert "a&lt;b" in out and '<td class="n">1.23</td>' in out and '<td class="n">3</td>' in out and "<td>yes</td>" in out and out.count("–") == 2
    assert "<th>key</th>" in table_html(pd.Series({"x": 1}, name="v").rename_axis("key").to_frame())


def test_text():
    assert text_html("<p>as *it* is</p>\n\n<p>x</p>") == "<p>as *it* is</p>\n\n<p>x</p>"
    assert text_html("# A\n\nb **c** `d`\n\n- e\n- [f](g)") == '<h1>A</h1>\n<p>b <strong>c</strong> <code>d</code></p>\n<ul><li>e</li><li><a href="g">f</a></li></ul>'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    blocks = ["Some **text** with a [link](https://example.org/paper).", "<h2>Figures</h2>", *(draw(**EXAMPLES[name]) for name, draw in FIGURES.items()), *(draw(**PRINT_EXAMPLES[name]) for name, draw in PRINT_FIGURES.items()), ROWS,
              ROWS.set_index("method")["cer"]]
    return write_page(tmp_path_factory.mktemp("page") / "report.html", "A <report>", blocks)


def test_page_makes_no_request(page):
    text = page.read_text()
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)      # all but the libraries
    assert not re.search(r"""\bsrc\s*=\s*["']?(?:https?:)?//""", own) and "<link" not in own and "@import" not in own and "url(" not in own
    assert re.findall(r'href="(https?://[^"]*)"', own) == ["https://example.org/paper"]     # followed only on a click
    assert not re.search(r"<script[^>]+src", text)
    assert page.stat().st_size < 8 * 2**20 and text.count("plotly.js v") == 1 and "<title>A &lt;report&gt;</title>" in text
    assert text.count('class="sg-plotly"') == len(FIGURES) and own.count("data:image/png;base64,") == len(PRINT_FIGURES) and len(set(re.findall(r'id="(figure-\d+)"', text))) == len(FIGURES)


def test_page_without_plotly_figures_carries_no_plotly(tmp_path):
    assert write_page(tmp_path / "small.html", "small", ["text", ROWS]).stat().st_size < 20_000


def test_page_refuses_what_must_be_fetched_and_keeps_the_old_page(tmp_path):
    path = write_page(tmp_path / "page.html", "old", ["text"])
    for block in ('<img src="https://example.org/x.png">', "<script src='//example.org/x.js'></script>", '<link rel="stylesheet" href="https://example.org/x.css">'):
        with pytest.raises(FigureError, match="embed it"): write_page(path, "new", [block])
    with pytest.raises(FigureError, match="dict"): block_html({}, "x")
    assert "old" in path.read_text() and list(tmp_path.iterdir()) == [path]


def test_large_page_warns(tmp_path):
    with pytest.warns(UserWarning, match="MiB"): write_page(tmp_path / "page.html", "large", ["x" * 3000], max_mib=0.001)


def test_page_draws_in_a_browser(page, tmp_path):
    "Every figure is drawn by the browser with no script error and no network."
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium: pytest.skip("no chromium here")
    probe = "<head><script>addEventListener('error', e => document.documentElement.dataset.error = e.message);addEventListener('unhandledrejection', e => document.documentElement.dataset.error = e.reason)</script>"
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text().replace("<head>", probe, 1))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom", watched.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    if not dom: pytest.skip("chromium does not start here")
    assert not re.search(r'<html[^>]*data-error="([^"]*)"', dom), re.search(r'<html[^>]*data-error="([^"]*)"', dom)[1]
    drawn = re.split(r'<div class="sg-plotly', dom.split("<script>!function")[0])[1:]
    assert len(drawn) == len(FIGURES) and all('class="main-svg"' in d and re.search(r'class="x\d*tick"', d) for d in drawn)


def test_a_figure_stands_without_the_room_of_its_title():
    layout = json.loads(re.search(r'json">(.*?)</script>', block_html(Drawn(beside_bars(COMPARED, "simulated"), print_beside(COMPARED, "simulated")), "x"), re.S)[1])["layout"]
    own = beside_bars(COMPARED, "simulated").layout
    assert layout["margin"]["t"] == 44 and own.height - layout["height"] == own.margin.t - 44 == own.meta["rest"] - layout["meta"]["rest"]


def test_folds_and_contents(tmp_path):
    page = write_page(tmp_path / "p.html", "T", ["## One <&", Fold("more <b>", ("inside", COMPARED[["method", "cer"]])), "## Two"], contents=True, cards={"r": {"recipe": {"a": "</script>"}}}).read_text()
    assert '<a href="#s1">' in page and '<h2 id="s2">Two</h2>' in page and "<summary>more &lt;b&gt;</summary><p>inside</p>" in page
    assert "</script>" not in re.search(r'id="sg-cards">(.*?)</script>', page)[1]


def test_numbers_in_words_are_aligned_as_numbers():
    table = table_html(pd.DataFrame({"cer": ["11.40 [10.10, 12.80]", "–"], "steps": ["1,234", "7"], "name": ["4 of 16", "x"]}))
    assert table.count('<td class=n>') == 4 and table.count("<th class=n>") == 2


def test_markdown_tables_and_what_is_left_to_the_page(tmp_path):
    assert table_markdown(pd.DataFrame({"a|b": ["x|y", None], "n": [1.234, 5]})).splitlines() == ["| a\\|b | n |", "| --- | --- |", "| x\\|y | 1.23 |", "| – | 5.00 |"]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "r-07.png").write_text("of an earlier report"); (tmp_path / "figures" / "mine.png").write_text("kept")
    text = write_markdown(tmp_path / "r.md", "T", ["words", Drawn(beside_bars(COMPARED, "simulated", "how"), print_beside(COMPARED, "simulated")), beside_bars(COMPARED, "simulated"), Fold("more", ("inside",))]).read_text()
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == ["mine.png", "r-01.png"] and "in the page only" in text and "### more\n\ninside" in text
    with pytest.raises(FigureError, match="dict"): write_markdown(tmp_path / "r.md", "T", [{}])


def test_emphasis_and_bold():
    assert text_html("*a b* and **c** and 2 * 3 * 4") == "<p><em>a b</em> and <strong>c</strong> and 2 * 3 * 4</p>"
