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
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs" / "_site"))
import build  # noqa: E402
from finish import finish_page  # noqa: E402
from links import broken_links  # noqa: E402

PAGE = [
    ("markdown", "# A page\n> made for this test, with one of each thing a page may hold."),
    ("code", "#| default_exp page"),
    ("code", "#| export\nimport math"),
    ("code", "import plotly.graph_objects as go\nfrom IPython.display import Markdown"),
    ("markdown", "## Half\n\nBetween $0$ and $\\frac{1}{2}$; see `half`, [the front](index.ipynb) and [the licence](../LICENSE)."),
    ("code", "#| export\ndef half(x: float,  # any number\n         ) -> float:  # half of it\n    \"Half of a number.\"\n    secret_line = x / 2\n    return secret_line"),
    ("code", "#| export\nimport os\n\ndef home(\n    places=os.environ,  # where to look\n    width: int = 2**4,  # noqa: B008\n):\n    \"A place.\"\n    return places"),
    ("code", "#| export\nclass Lost(ValueError):\n    \"No such place.\"\n    field: int = 3  # how far, km"),
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
    shutil.copytree(ROOT / "nbs" / "images", top / "nbs" / "images")
    shutil.copytree(ROOT / "reports" / "published", top / "reports" / "published")
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


def test_a_signature_is_the_one_that_was_written(site):
    "Defaults by name, never the value they have on the machine that builds (an environment, say); fields of a class; no word to a linter."
    page = re.sub(r"<[^>]+>", "", html(site, "09_page"))
    for text in ("places=os.environ,  # where to look", "width: int = 2**4,\n):", "class Lost(ValueError):\n    field: int = 3  # how far, km"):
        assert text in page, text
    assert "PATH" not in page and page.count("noqa") == 1, "only in the code that is folded away"


def test_signatures():
    "Decorators, a body on the same line, a constructor; a name the cell does not have."
    cell = "@wraps\ndef one(x): return x\n\nclass Two:\n    'Doc.'\n    def __init__(self,\n                 n: int,  # how many\n                 ):\n        self.n = n\n"
    assert build.signature(cell, "one") == "@wraps\ndef one(x):"
    assert build.signature(cell, "Two") == "class Two:\n    def __init__(self,\n                 n: int,  # how many\n                 ):"
    assert build.signature(cell, "three") == ""


def test_finished_pages():
    "Lines of code know how far in they begin and nothing of their text changes; outputs stay; figures open; only cells of many words get room."
    block = '<div class="{}highlight-python notranslate"><div class="highlight"><pre><span></span><b>def</b> f():\n\n    <i>x</i>\n</pre></div></div>'
    page = finish_page(block.format("") + block.format("output ") + '<td class="a">' + "word " * 9 + "</td><td>short</td>" + f'<img alt="x" src="../_images/{"0" * 64}.png" />')
    assert re.findall(r"--in:(\d)", page) == ["0", "0", "4"]
    plain = re.sub(r"<[^>]+>", "", page)
    assert plain.startswith("def f():\n\n    x\n" * 2)
    assert page.count("sg-words") == 1 and '<td class="sg-words a">' in page and f'<a class="sg-figure" href="../_images/{"0" * 64}.png"' in page
    assert finish_page(page) == page


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


def test_nothing_leads_nowhere(site):
    "The build refuses dead links; the same check on the finished site finds none."
    assert broken_links(site) == []


def test_dead_links_are_found(tmp_path):
    "A missing page, a missing picture, a missing anchor here and there, a place outside; living links stay unsaid."
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text("""<h1 id="top-of-it">x</h1><a href="sub/two.html#here">fine</a><a href="sub/">fine</a><a href="https://example.org/x">fine</a>
        <a href="gone.html">dead</a><img src="gone.png"><a href="#nowhere">dead</a><a href="sub/two.html#nowhere">dead</a><a href="../outside.html">dead</a>
        <a href="file:///etc/motd">dead</a><a href="https:///x">dead</a>""", encoding="utf-8")
    for name in ("two", "index"):
        (tmp_path / "sub" / f"{name}.html").write_text("<p id='here'>x</p><a href='../index.html#top-of-it'>fine</a>", encoding="utf-8")
    found = broken_links(tmp_path)
    assert [line.split()[1] for line in found] == ["gone.html", "gone.png", "#nowhere", "sub/two.html#nowhere", "../outside.html", "file:///etc/motd", "https:///x"]


def test_sections_are_in_the_order_of_the_data():
    "Components by number under the layer they belong to, tutorials in reading order."
    assert [build.layer_of(name) for name in ("00_axes", "19_composing", "22_ablations", "28_norms", "36_adaptation", "44_baseline", "70_cli", "tutorials/first_run")] == [
        "Ground rules", "Recordings", "Signal to features", "The model", "The model", "Text and errors", "Command line", ""]
    made = {name: {"cells": [{"source": f"# Title of {name}\n\n> What it is."}]} for name in ("00_axes", "11_session", "12_synthetic")}
    page = build.index_page("Components", "Intro.", list(made), made)
    assert page.index("## Ground rules") < page.index("00_axes.ipynb") < page.index("## Recordings") < page.index("11_session.ipynb") < page.index("12_synthetic.ipynb")
    assert ":caption: Recordings" in page and "What it is." in page
    assert sorted(["tutorials/zebra", "tutorials/reading_a_cer", "tutorials/first_run"], key=build.reading_order)[::2] == ["tutorials/first_run", "tutorials/zebra"]


def test_the_glossary_names_what_there_is():
    "Each name in code type that a glossary entry places on a page is exported there."
    text = (ROOT / "nbs" / "glossary.ipynb").read_text(encoding="utf-8")
    placed = re.findall(r"`(\w+)` in \[(\d\d_\w+)\]", text)
    assert len(placed) > 30
    for name, page in placed:
        module = (ROOT / "semgbook" / f"{page[3:]}.py").read_text(encoding="utf-8")
        assert f"'{name}'" in module.split("# %%")[1], f"the glossary says that {page} has {name}"


def test_the_front_page_shows_the_published_run():
    "Picture and table of README.md: small enough, and the numbers are those of the run folder it names."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    picture = ROOT / re.search(r"!\[[^\]]+\]\(([^)]+)\)", readme)[1]
    assert picture.stat().st_size < 200_000
    folder = (ROOT / re.search(r"\((reports/published/[^)]+)/results.json\)", readme)[1])
    phases = json.loads((folder / "results.json").read_text(encoding="utf-8"))["phases"]
    rows = re.findall(r"^\| [^|]+ \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", readme, re.M)
    wanted = [tuple(f"{phases[p][k]:.1f}" for k in ("cer", "low", "high")) + tuple(str(phases[p][k]) for k in ("n_missed", "n_extra", "n_wrong", "n_reference"))
              for p in ("test", "test_beam", "test_lm", "test_lm_tuned")]
    assert rows == wanted
    assert sum(f.stat().st_size for f in (ROOT / "reports" / "published").rglob("*") if f.is_file()) < 1_000_000


def test_citation_names_this_version():
    "CITATION.cff is YAML with what its format asks for, and the version of settings.ini."
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(cited) and cited["authors"]
    assert str(cited["version"]) == build.settings()["version"] and cited["license"] == "Apache-2.0"


@pytest.mark.parametrize("width", [1200, 390])
def test_pages_fit_desktop_and_phone(site, width):
    "In a real browser nothing sticks out to the right, no script fails, and search finds a name."
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    if not browser_path:
        pytest.skip("no Chromium here")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page, failures = browser.new_page(viewport={"width": width, "height": 844}), []
        page.set_default_timeout(180_000)  # a busy machine is slow, not broken
        page.on("pageerror", lambda error: failures.append(str(error)))
        for name in ("index", "components", "09_page", "decisions", "contributing"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than {width} px"
        assert not failures, failures
        page.goto((site / "search.html").as_uri() + "?q=half")  # opened as a file it finds pages, but cannot fetch their excerpts
        page.wait_for_selector("#search-results li")
        browser.close()
