"The site builds without a warning, keeps everything it needs beside it, and its figures and formulas are drawn."
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = [
    ("markdown", "# A page\n> made for this test, with one of each thing a page may hold."),
    ("code", "#| default_exp page"),
    ("code", "#| export\nimport math"),
    ("code", "import plotly.graph_objects as go\nfrom IPython.display import Markdown"),
    ("markdown", "## Half\n\nBetween $0$ and $\\frac{1}{2}$; see `half`, [the front](index.ipynb) and [the licence](../LICENSE)."),
    ("code", "#| export\ndef half(x: float,  # any number\n         ) -> float:  # half of it\n    \"Half of a number.\"\n    secret_line = x / 2\n    return secret_line"),
    ("code", "#| export\nTABLE = {'shown in full': 1}"),
    ("code", "#| hide\nhidden = 1"),
    ("code", "#| eval: false because it would stop the kernel\nraise SystemExit"),
    ("code", "#| slow\nraise SystemExit"),
    ("code", "#| echo: false\nprint('output without its code')"),
    ("code", "go.Figure(go.Scatter(x=[1, 2, 3], y=[half(1), 2, 1], name='</script>'))"),
]


def write_page(path):
    "The notebook made of PAGE."
    cells = [nbformat.v4.new_markdown_cell(s, id=f"c{n}") if kind == "markdown" else nbformat.v4.new_code_cell(s, id=f"c{n}") for n, (kind, s) in enumerate(PAGE)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), path)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A small book with the front page, the decisions and the page above, built by nbs/_site/build.py as `make docs` does."
    top = tmp_path_factory.mktemp("book")
    (top / "nbs").mkdir()
    shutil.copytree(ROOT / "nbs" / "_site", top / "nbs" / "_site", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt", "CONTRIBUTING.md", "nbs/index.ipynb", "nbs/decisions.ipynb"):
        shutil.copy(ROOT / file, top / file)
    (top / "semgbook").mkdir()
    write_page(top / "nbs" / "09_page.ipynb")
    done = subprocess.run([sys.executable, "nbs/_site/build.py"], cwd=top, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return top / "_docs"


def html(site, name):
    "The text of one page."
    return (site / f"{name}.html").read_text(encoding="utf-8")


def test_a_page_shows_what_a_reader_needs(site):
    "Title, signature with its comments, the source folded away, the exported table in full, outputs; nothing hidden."
    page = html(site, "09_page")
    plain = re.sub(r"<[^>]+>", "", page)
    for text in ("A page", "made for this test", "# any number", "Half of a number.", "secret_line", "shown in full", "output without its code"):
        assert text in plain, text
    assert re.search(r"<details[^>]*>(?:(?!</details>).)*secret_line", page, re.S)
    for text in ("hidden = 1", "#| ", "print('output", "default_exp"):
        assert text not in plain, text
    assert re.search(r'href="#half"', page), "a name in backticks leads to its signature"
    assert 'href="index.html"' in page and "LICENSE" not in page


def test_figures_travel_as_data(site):
    "A plotly figure is JSON in the page, safe against its own text, with the library beside the site."
    figure = re.search(r'<div class="sg-plotly"><script type="application/json">(.*?)</script>', html(site, "09_page"), re.S)
    assert json.loads(figure[1])["data"][0]["name"] == "</script>"
    assert (site / "_static" / "plotly.min.js").stat().st_size > 1e6


def test_no_page_asks_another_host(site):
    "Scripts, styles, fonts and pictures come from the site itself."
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=[\"']https?:[^>]*>|<link[^>]+stylesheet[^>]+href=[\"']https?:[^>]*>", text), page.name


def test_search_and_navigation_are_built(site):
    assert "secret_line" in (site / "searchindex.js").read_text(encoding="utf-8") or "half" in (site / "searchindex.js").read_text(encoding="utf-8")
    assert 'href="components.html"' in html(site, "index") and "09_page.html" in html(site, "components")


def test_a_browser_draws_figures_and_formulas(site):
    "Opened as a file in a real browser, with no network."
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if not browser:
        pytest.skip("no Chromium here")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                               "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom",
                               (site / "09_page.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert 'data-drawn="yes"' in done.stdout and 'class="main-svg"' in done.stdout
    assert "<mjx-container" in done.stdout
