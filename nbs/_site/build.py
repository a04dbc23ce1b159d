"""The documentation site in `_docs`, made from the notebooks: execute, let nbdev process, make neutral, render.

With Quarto on the PATH, `--quarto` renders the same executed pages with nbdev_docs. Give page names to build only those.
"""
import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NBS, EXECUTED, PREPARED, PROCESSED, PAGES, SITE = (ROOT / name for name in ("nbs", "_exec", "_prep", "_proc", "_pages", "_docs"))
EXPORT = re.compile(r"^(\s*#\|\s*)export\b(?!s)", re.M)
FRONT_PAGES = [place for place in ("CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "reports/README.md") if (ROOT / place).exists()]
SECTIONS = [("Tutorials", "tutorials_index", r"tutorials/", "Each takes minutes, works on simulated sessions as it stands, and ends in something of yours."),
            ("Components", "components", r"\d\d_", "One page for each module, in the order of the data's way: nothing on a page needs a page that comes later."),
            ("Experiments", "experiments_index", r"experiments/", "Each asks a question. The pages show the code; what runs said is in the report."),
            ("Exploring", "explore_index", r"explore/", "Pages with sliders and menus, for JupyterLab (`semgbook lab`). Here they are without a kernel: "
             "they say what can be tried, their controls do not move.")]
LAYERS = {"00": "Ground rules", "10": "Recordings", "20": "Signal to features", "23": "Recordings", "24": "Signal to features", "28": "The model", "40": "Text and errors", "48": "Runs", "60": "Seeing", "70": "Command line"}
FIRST = ["first_run", "own_wristband", "add_an_encoder", "real_data", "cluster", "reading_a_cer"]  # tutorials in reading order; others follow


def mathjax():
    "MathJax's one file, from the package that carries it; None where that is not installed."
    try:
        return next((f.locate() for f in files("sphinx-mathjax-offline") if f.name == "tex-svg.js"), None)
    except PackageNotFoundError:
        return None


# --- execute ------------------------------------------------------------------------------------

def is_parameterised(path):
    "Whether papermill runs this notebook, not the site."
    return '"parameters"' in path.read_text(encoding="utf-8")


def same_cells(path, done):
    "Whether an executed page exists and has the cells that the notebook has now."
    return done.exists() and len({tuple("".join(c["source"]) for c in json.loads(p.read_text(encoding="utf-8"))["cells"]) for p in (path, done)}) == 1


def run_page(path, any_age=False):
    "Execute one page into _exec, unless it is there as of now (or at all); what is parameterised stays as it is. Returns what went wrong."
    from execute import CellExecutionError, execute, is_fresh
    if is_parameterised(path):
        out = EXECUTED / path.relative_to(NBS)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out)
    elif not (is_fresh(path, EXECUTED) or any_age and same_cells(path, EXECUTED / path.relative_to(NBS))):
        try:
            execute(path, keep=EXECUTED)
        except CellExecutionError as error:
            return f"{path.name} does not run:\n{error}"


def executed(pages, workers, any_age=False):
    "Run all pages, as many at a time as there are workers."
    with ProcessPoolExecutor(workers) as pool:
        failures = []
        for path, failure in zip(pages, pool.map(run_page, pages, [any_age] * len(pages)), strict=True):
            print("page", path.relative_to(NBS).with_suffix(""), "FAILED" if failure else "", flush=True)
            failures += [failure] if failure else []
    if failures:
        sys.exit("\n\n".join(failures))


# --- nbdev's part -------------------------------------------------------------------------------

def source_cells(nb):
    "Name -> source of the exporting cell that defines it."
    found = {}
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and EXPORT.search(source):
            for name in re.findall(r"^(?:def|class)\s+([A-Za-z]\w*)", source, re.M):
                found[name] = plain(source)
    return found


def plain(source):
    "A cell without its directives."
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("#|")).strip("\n")


def signature(source, name):
    """How a function or class of a cell begins, as its author wrote it; empty where the cell has none of that name.

    nbdev writes defaults as values: the words of a vocabulary, the environment variables of whoever builds the site. And a class has its fields, with their comments."""
    node = next((n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name), None)
    if node is None:
        return ""
    lines = source.splitlines()

    def header(n):
        first, body = min([n, *n.decorator_list], key=lambda part: part.lineno).lineno - 1, n.body[0]
        same_line = [lines[body.lineno - 1].encode()[:body.col_offset].decode()] if body.lineno - 1 >= first else []
        return "\n".join(lines[first:body.lineno - 1] + same_line).rstrip()

    parts = [header(node)]
    if isinstance(node, ast.ClassDef):
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        makers = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        parts += ["\n".join(lines[n.lineno - 1:n.end_lineno]) for n in fields] or [header(n) for n in makers]
    return re.sub(r"[ \t]*# noqa\b[^\n]*", "", "\n".join(parts))


def prepared(pages):
    "Copies for nbdev: an exporting cell with nothing public to list (a table, a private helper) shows its source instead."
    for path in pages:
        nb = json.loads((EXECUTED / path.relative_to(NBS)).read_text(encoding="utf-8"))
        for cell in nb["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and EXPORT.search(source):
                body = plain(source)
                imports_only = all(re.match(r"(import|from)\s|\s|\)|#|$", line) for line in body.splitlines())
                if not re.search(r"^(?:def|class)\s+[A-Za-z]", body, re.M) and not imports_only:
                    cell["source"] = EXPORT.sub(r"\1exports", source)
        out = PREPARED / path.relative_to(NBS)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(nb), encoding="utf-8")


def processed(workers):
    "nbdev's own processors: hidden cells gone, signatures shown, names in backticks linked."
    from nbdev.serve import proc_nbs
    shutil.rmtree(PROCESSED, ignore_errors=True)
    os.chdir(ROOT)
    proc_nbs(path=PREPARED.name, n_workers=workers)


# --- neutral pages ------------------------------------------------------------------------------

def settings():
    "settings.ini as a mapping."
    ini = ConfigParser()
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


class Neutral:
    "Turns what nbdev made for Quarto into pages any renderer understands."

    def __init__(self, pages):
        self.names = [p.relative_to(NBS).with_suffix("").as_posix() for p in pages]
        cfg = settings()
        self.host = cfg["doc_host"] + cfg["doc_baseurl"]
        self.of_module = {re.sub(r"^\d\d_", "", name): name for name in self.names}

    def links(self, text, page):
        "Links to the public host, to notebooks and to files of the repository, as the site has them; code stays code."
        up = "../" * page.count("/")

        def public(match):
            page_name, _, anchor = match[2].partition("#")
            target = self.of_module.get(page_name.removesuffix(".html"))
            return f"[{match[1]}]({up}{target}.ipynb{'#' + anchor if anchor in self.shown.get(target, ()) else ''})" if target else match[1]

        def relative(match):
            target, _, anchor = match[2].partition("#")
            place = os.path.normpath(os.path.join(os.path.dirname("nbs/" + page), target))
            name = front_name(place) if place in FRONT_PAGES else os.path.relpath(place, "nbs")
            in_site = place in FRONT_PAGES or name.removesuffix(".ipynb") in self.names
            return f"[{match[1]}]({up}{name}{'#' + anchor if anchor else ''})" if in_site else match[1]

        parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
        for n, part in enumerate(parts):
            if part.startswith("```"):  # nbdev links names inside signatures too, where no link can be
                parts[n] = re.sub(r"\[(`[^`]*`)\]\(https?:[^)]*\)", lambda m: m[1].strip("`"), part)
            else:
                part = re.sub(r"\[([^\]]+)\]\(" + re.escape(self.host) + r"([^)]*)\)", public, part)
                part = re.sub(r"(?<!!)\[([^\]]+)\]\(((?:\.\./|[\w/.-]+\.(?:ipynb|md|cff))[^)\s]*)\)", relative, part)
                parts[n] = re.sub(r"(`[^`]*`)|(?<=\s)->(?=\s)", lambda m: m[1] or "→", part)
        return "".join(parts)

    def anchors(self):
        "Page -> anchors of the names shown on it."
        self.shown = {}
        for name in self.names:
            text = (PROCESSED / f"{name}.ipynb").read_text(encoding="utf-8")
            self.shown[name] = {n.lower() for n in re.findall(r"show_doc\((\w+)", text)}

    def page(self, name):
        "One neutral notebook."
        nb = json.loads((PROCESSED / f"{name}.ipynb").read_text(encoding="utf-8"))
        sources = source_cells(json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8")))
        cells = []
        for cell in nb["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "raw" and source.startswith("---"):
                front = yaml.safe_load(source.strip().strip("-"))
                text = "\n\n".join(mark + front[key] for key, mark in (("title", "# "), ("description", "> ")) if key in front)
                cells.append(markdown(text))
            elif cell["cell_type"] == "markdown":
                if "WARNING: THIS FILE WAS AUTOGENERATED" not in source:
                    cells.append(markdown(self.links(source, name)))
            elif cell["cell_type"] == "code" and "show_doc(" in source:
                cells += self.listing(cell, source, sources, name)
            elif cell["cell_type"] == "code" and plain(source):
                cells.append(self.code(cell, source))
        for number, cell in enumerate(cells):
            cell["id"] = f"cell-{number}"
        return {"cells": cells, "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}, "nbformat": 4, "nbformat_minor": 5}

    def front_page(self, place):
        "A markdown file of the repository, its links as if it lay among the notebooks."
        folder, text = os.path.dirname(place), (ROOT / place).read_text(encoding="utf-8")
        text = re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", lambda m: "](" + os.path.relpath(os.path.join(folder, m[1]), "nbs") + ")", text)
        return self.links(text, "index")

    def listing(self, cell, source, sources, page):
        "A signature as nbdev prints it, with the code behind it folded away."
        text = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in cell["outputs"])
        text = re.sub(r"^---\s*$|^\[source\]\(.*$", "", text, flags=re.M)
        text = re.sub(r"^### (\w+)$", r"### `\1`", text, flags=re.M)
        shown = re.search(r"show_doc\((\w+)", source)
        written = signature(sources[shown[1]], shown[1]) if shown and shown[1] in sources else ""
        if written:
            text = re.sub(r"^```python\n.*?^```$", lambda _: f"```python\n{written}\n```", text, count=1, flags=re.M | re.S)
        folded = [code_cell(sources[shown[1]], tags=["hide-input"])] if shown and shown[1] in sources else []
        return [markdown(self.links(text.strip(), page)), *folded]

    def code(self, cell, source):
        "A code cell without directives; its figures as plain data, widgets as the text they stand for."
        outputs = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            figure = data.get("application/vnd.plotly.v1+json")
            if figure:
                output["data"] = {"text/html": figure_html(figure)}
            else:
                data.pop("application/vnd.jupyter.widget-view+json", None)
            output.pop("transient", None)
            outputs.append(output)
        return code_cell(plain(source), outputs, tags=["remove-input"] if re.search(r"#\|\s*echo:\s*false", source) else [])


def figure_html(figure):
    "A figure as JSON inside the page; sg-plotly.js draws it."
    keep = {key: figure[key] for key in ("data", "layout", "frames", "config") if figure.get(key)}
    return '<div class="sg-plotly"><script type="application/json">' + json.dumps(keep).replace("</", "<\\/") + "</script></div>"


def markdown(text):
    "A markdown cell."
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code_cell(source, outputs=(), tags=()):
    "A code cell as executed."
    return {"cell_type": "code", "execution_count": None, "metadata": {"tags": list(tags)}, "outputs": list(outputs), "source": source}


def toctree(names, caption=""):
    "Sphinx's list of the pages below one."
    return "```{toctree}\n:hidden:\n:maxdepth: 1\n" + f":caption: {caption}\n" * bool(caption) + "\n" + "\n".join(names) + "\n```"


def layer_of(name):
    "The layer whose number is the last one not above a component's; empty for other pages."
    return next((layer for first, layer in reversed(LAYERS.items()) if re.match(r"\d\d_", name) and first <= name[:2]), "")


def index_page(heading, intro, members, made):
    "The page of a section: a table of its pages, under the layer they belong to where they have one."
    parts = [f"# {heading}", intro]
    for layer in dict.fromkeys(map(layer_of, members)):
        inside = [name for name in members if layer_of(name) == layer]
        rows = [f"| [{title_of(made[name])[0]}]({name}.ipynb)<br>`{name.split('/')[-1]}` | {title_of(made[name])[1]} |" for name in inside]
        table = "\n".join(["| page | what it is |", "|---|---|", *rows])
        parts += [f"## {layer}" if layer else "", f":::{{container}} sg-index\n\n{table}\n\n:::", toctree(inside, layer)]
    return "\n\n".join(filter(None, parts)) + "\n"


def reading_order(name):
    "Where a page stands among those of its section."
    last = name.split("/")[-1]
    return (FIRST.index(last) if last in FIRST else len(FIRST), name)


def front_name(place):
    "The site's name for a markdown file of the repository."
    return place.lower().replace("/readme", "")  # data/README.md -> data.md


def title_of(page):
    "Title and description of a neutral page."
    first = page["cells"][0]["source"]
    return re.search(r"^# (.+)$", first, re.M)[1], (re.search(r"^> (.+)$", first, re.M) or ["", ""])[1]


def write_pages(pages):
    "All neutral pages, the indices and the files they need, into _pages."
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir()
    neutral = Neutral(pages)
    neutral.anchors()
    made = {name: neutral.page(name) for name in neutral.names}
    indices = []
    for heading, file, pattern, intro in SECTIONS:
        members = sorted((name for name in made if re.match(pattern, name)), key=reading_order)
        if members:
            (PAGES / f"{file}.md").write_text(index_page(heading, intro, members, made), encoding="utf-8")
            indices.append(file)
    tops = [name for name in (*indices, "report", "architecture", "glossary", "decisions") if name in made or name in indices]
    for place in FRONT_PAGES:
        (PAGES / front_name(place)).write_text(neutral.front_page(place), encoding="utf-8")
        tops.append(front_name(place).removesuffix(".md"))
    made["index"]["cells"].append({**markdown(toctree(tops)), "id": "toctree"})
    for name, page in made.items():
        out = PAGES / f"{name}.ipynb"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(page), encoding="utf-8")
    if (NBS / "images").exists():
        shutil.copytree(NBS / "images", PAGES / "images")
    static = PAGES / "_static"
    static.mkdir()
    import plotly
    for file in (HERE / "semgbook.css", HERE / "sg-plotly.js", Path(plotly.__file__).parent / "package_data" / "plotly.min.js", mathjax()):
        if file:
            shutil.copy(file, static)


def render():
    "Sphinx, with every warning an error."
    made = PAGES / "_html"  # MyST-NB leaves a folder beside the output, so that has to be a place of its own
    done = subprocess.run([sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-c", HERE, PAGES, made])
    if done.returncode:
        sys.exit("the pages were not rendered: each line above says where")
    from finish import finish_pages
    from links import broken_links
    finish_pages(made)
    broken = broken_links(made)
    if broken:
        sys.exit("links that lead nowhere:\n" + "\n".join(broken))
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(made, SITE)


def render_with_quarto():
    "nbdev's way, on the executed pages."
    for name in ("_quarto.yml", "nbdev.yml"):
        if (NBS / name).exists():
            shutil.copy(NBS / name, EXECUTED)
    subprocess.run([Path(sys.executable).parent / "nbdev_docs", "--path", EXECUTED.name], cwd=ROOT, check=True)


def main():
    "Build the site."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="names of pages, such as 42_metrics; all when left out")
    parser.add_argument("--quarto", action="store_true", help="render with Quarto, which has to be on the PATH")
    parser.add_argument("--any-age", action="store_true", help="take executed pages whose cells have not changed, however old: for work on how the site looks")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from execute import notebooks
    wanted = [p for p in notebooks() if not args.pages or p.relative_to(NBS).with_suffix("").as_posix() in {"index", *args.pages}]
    executed(wanted, args.workers, args.any_age)
    if args.quarto:
        if not shutil.which("quarto"):
            sys.exit("quarto is not on the PATH: leave --quarto out, the site needs nothing that pip cannot install")
        return render_with_quarto()
    shutil.rmtree(PREPARED, ignore_errors=True)
    prepared(wanted)
    processed(args.workers)
    write_pages(wanted)
    render()
    print(f"the site: {SITE.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
