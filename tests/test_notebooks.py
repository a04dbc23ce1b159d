"The book holds: every notebook runs, is clean, reads as a page, and the package is what the notebooks export."
import ast
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs" / "_site"))
from execute import execute, notebooks  # noqa: E402

DIRECTIVE = re.compile(r"^\s*#\|", re.M)
EXPORT = re.compile(r"^\s*#\|\s*exporti?\b", re.M)
HEADINGS = ["What to remember", "Where it goes next", "Sources"]


def label(path):
    "How a notebook is called in a test's name."
    return path.relative_to(ROOT / "nbs").with_suffix("").as_posix()


def each(paths):
    "One test for each notebook."
    return pytest.mark.parametrize("path", paths, ids=label)


ALL = notebooks()
EXPERIMENTS = [p for p in ALL if p.parent.name == "experiments"]
COMPONENTS = [p for p in ALL if re.match(r"\d\d_", p.name) and p.parent == ROOT / "nbs"]
EXPORTING_NOTHING = [p for p in ALL if p not in COMPONENTS]
RUNNING = [p for p in ALL if '"parameters"' not in p.read_text(encoding="utf-8")]  # the others run through papermill: tests/test_book.py
assert len(COMPONENTS) > 3, "the notebooks are not where this test looks for them"


def cells(path, kind):
    "Sources of a notebook's markdown or code cells."
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def tree(source):
    "A cell's syntax tree, lines that only IPython understands left out."
    return ast.parse("\n".join("" if line.lstrip()[:1] in ("%", "!") else line for line in source.splitlines()))


def code_lines(source):
    "How many lines of a cell are code."
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def directives(source):
    "What stands behind `#|` in a cell."
    return re.findall(r"^\s*#\|\s*(.+?)\s*$", source, re.M)


# --- each notebook runs -------------------------------------------------------------------------

@each(RUNNING)
def test_runs(path):
    "From top to bottom, in a kernel of its own, in its own folder; the executed page is kept for `make docs`."
    execute(path, keep=ROOT / "_exec")


# --- each notebook is clean ---------------------------------------------------------------------

@each(ALL)
def test_is_clean(path):
    "No outputs and no metadata but tags; ids that are there, unique and therefore stable in the exported module."
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    assert nb["nbformat"] == 4 and nb["nbformat_minor"] >= 5
    ids = [c.get("id") for c in nb["cells"]]
    assert all(ids) and len(set(ids)) == len(ids), "a cell without an id of its own"
    for cell in nb["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, f"cell {cell['id']}: metadata {sorted(cell['metadata'])}"
        assert not cell.get("outputs") and cell.get("execution_count") is None, f"cell {cell['id']} holds outputs"
        assert "".join(cell["source"]).strip(), f"cell {cell['id']} is empty"
    assert set(nb["metadata"]) <= {"kernelspec"}
    assert len(text) < 200_000


@each(ALL)
def test_code_keeps_the_rules(path):
    "Imports stand alone in their cells (the site runs those cells alone); no star import; `eval: false` only with a reason."
    for source in cells(path, "code"):
        if "nbdev_export(" in source:
            continue
        body = tree(source).body
        where = body if EXPORT.search(source) else list(ast.walk(ast.Module(body, [])))  # a lazy import is fine in what is exported only
        imports = [n for n in where if isinstance(n, (ast.Import, ast.ImportFrom))]
        others = [n for n in body if n not in imports and not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
        assert not (imports and others), f"imports mixed with other code:\n{source}"
        assert not any(alias.name == "*" for n in imports for alias in n.names), source
        for word in directives(source):
            assert not re.fullmatch(r"eval:\s*false", word), f"eval: false without a reason on its line:\n{source}"


@each(ALL)
def test_is_a_page(path):
    "It opens with a title and one line of what it is, and has sections."
    first, *_ = cells(path, "markdown")
    assert re.match(r"# \S.*\n+> \S", first), f"begins with {first[:80]!r}, not with '# Title' and '> one line'"
    assert json.loads(path.read_text())["cells"][0]["cell_type"] == "markdown"
    assert re.search(r"^## \S", "\n".join(cells(path, "markdown")), re.M), "a page without a section"


# --- component notebooks ------------------------------------------------------------------------

@each(COMPONENTS)
def test_exports_one_module_of_its_name(path):
    names = [w.split()[1] for source in cells(path, "code") for w in directives(source) if w.startswith("default_exp")]
    assert names == [path.stem[3:]]
    assert (ROOT / "semgbook" / f"{names[0]}.py").exists(), "not exported yet: make export"
    elsewhere = [w for source in cells(path, "code") for w in directives(source) if re.match(r"exporti?\s+\S", w)]
    assert not elsewhere, f"exports into other modules: {elsewhere}"


@each(COMPONENTS)
def test_reads_as_a_lesson(path):
    "At least three words of prose to an exported line, examples that run, short cells, the closing sections."
    exported = [source for source in cells(path, "code") if EXPORT.search(source)]
    lines = sum(map(code_lines, exported))
    shown = sum(code_lines(s) for s in cells(path, "code") if s not in exported)
    prose = "\n".join(cells(path, "markdown"))
    words = len(re.findall(r"[A-Za-z][A-Za-z'-]+", prose))
    assert words >= 3 * lines, f"{words} words for {lines} exported lines"
    assert shown >= lines / 6, f"{shown} lines of example for {lines} exported lines"
    assert max(map(code_lines, exported)) <= 40, "an exported cell of more than 40 lines"
    headings = re.findall(r"^## (.+?)\s*$", prose, re.M)
    assert len(headings) >= 4 and headings[-3:] == HEADINGS, headings
    for source in exported:
        for node in ast.walk(tree(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


@each(EXPORTING_NOTHING)
def test_exports_nothing(path):
    for source in cells(path, "code"):
        assert not EXPORT.search(source) and "default_exp" not in source, source


def test_no_name_is_defined_twice():
    "A class or function has one home; a second one under the same name is a copy. (The command line's verbs may echo them.)"
    homes = defaultdict(set)
    for file in sorted(set((ROOT / "semgbook").glob("[a-z]*.py")) - {ROOT / "semgbook" / "cli.py"}):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                homes[node.name].add(file.stem)
    assert not {name: sorted(files) for name, files in homes.items() if len(files) > 1}


# --- experiments --------------------------------------------------------------------------------

@each(EXPERIMENTS)
def test_experiment_defines_nothing(path):
    "One cell tagged `parameters` for papermill; no functions and no classes: those belong to a component."
    nb = json.loads(path.read_text(encoding="utf-8"))
    tagged = [c for c in nb["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    assert all(isinstance(n, (ast.Assign, ast.AnnAssign)) for n in tree("".join(tagged[0]["source"])).body)
    for source in cells(path, "code"):
        bad = [n for n in ast.walk(tree(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
        assert not bad, source
    assert re.match(r"# .*\?", cells(path, "markdown")[0]), "an experiment's title is a question"


@each([p for p in ALL if p.name == "report.ipynb"] + EXPERIMENTS)
def test_no_result_is_typed_by_hand(path):
    "A percentage with decimals in prose is a result someone typed, unless its cell is tagged as quoted from a paper."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown" and "quoted" not in cell["metadata"].get("tags", []):
            typed = re.findall(r"\d+\.\d+\s*(?:%|\\%|percent|per cent)", "".join(cell["source"]))
            assert not typed, f"cell {cell['id']}: {typed}"


# --- the package is what the notebooks say ------------------------------------------------------

def snapshot(folder):
    "Text of every module, notebook and the front page below a folder."
    files = [*folder.glob("semgbook/*.py"), *folder.glob("nbs/**/*.ipynb"), folder / "README.md"]
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in files}


def test_export_and_clean_change_nothing(tmp_path):
    "In a copy of the tree, `make export` leaves every module, every notebook and README.md as they are."
    for folder, kinds in (("nbs", ("*.ipynb", "_site/*.py")), ("semgbook", ("*.py",))):
        for file in (f for kind in kinds for f in (ROOT / folder).rglob(kind) if ".ipynb_checkpoints" not in f.parts):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    for file in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "reports" / "published", tmp_path / "reports" / "published")  # README.md shows a table of it
    before = snapshot(tmp_path)
    for module in (tmp_path / "semgbook").glob("[a-z]*.py"):
        module.unlink()  # a module that no notebook exports must not survive
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).parent / command], cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([sys.executable, "nbs/_site/readme.py"], cwd=tmp_path, check=True, capture_output=True)
    after = snapshot(tmp_path)
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not different, f"run make export, then look at these and commit them: {different}"


# --- the repository -----------------------------------------------------------------------------

def tracked():
    "Text files that git holds (all that are not ignored, before a first commit); none outside a checkout."
    done = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in done.stdout.splitlines() if done.returncode == 0 else ():
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data[:4096]:
            yield name, data.decode("utf-8")


def test_no_place_that_only_one_machine_has():
    "No absolute home, no neighbouring folder and no registry host: they mean nothing to whoever clones this."
    place = re.compile(r"(?<![\w.~-])/(?:home|root|work|farm|mnt|Users)[/]|pypi\.org|python[h]osted|registry\.npmjs|deb\.debian")
    beside = re.compile(r"\.\./shared")  # only where a test says what it skips for
    found = [f"{name}:{n}: {line.strip()[:120]}" for name, text in tracked() for n, line in enumerate(text.splitlines(), 1)
             if place.search(line) or (beside.search(line) and not name.startswith("tests/"))]
    assert not found, "\n".join(found)


def test_links_between_files_lead_somewhere():
    "Relative links in the notebooks and the markdown files of the repository point at files that are there."
    pages = {p: "\n".join(cells(p, "markdown")) for p in ALL}
    pages |= {ROOT / name: text for name, text in tracked() if name.endswith(".md")}
    broken = [f"{page.relative_to(ROOT)}: {link}" for page, text in pages.items()
              for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
              if not (page.parent / link).exists()]
    assert not broken, "\n".join(broken)
