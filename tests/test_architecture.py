"The import graph of the package is the table on nbs/architecture.ipynb, goes only downwards, and stays light."
import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "semgbook"
# modules with a heavy import of their own at the top; whatever trains must not need them
OWN_HEAVY = {"book", "figures", "print_figures", "pages", "explore", "benches", "viewers"}
HEAVY = {"lightning", "pytorch_lightning", "torchmetrics", "plotly", "papermill", "ipywidgets", "anywidget", "rapidfuzz", "numba", "matplotlib",
         "seaborn", "nbformat", "nbclient", "IPython", "fastcore", "nbdev", "text_unidecode", "safetensors", "torchaudio", "transformers", "mne", "mne_bids", "onnx", "onnxruntime", "onnxscript", "kenlm"}


def sources():
    "Module name -> syntax tree of every exported module."
    return {p.stem: ast.parse(p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.glob("[a-z]*.py"))}


def numbers():
    "Module name -> number of its notebook."
    return {p.stem[3:]: int(p.stem[:2]) for p in sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))}


def imported(tree):
    "Modules of the package that a module imports, at its top or inside a function."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "semgbook"):
            tail = (node.module or "").removeprefix("semgbook").strip(".")
            found |= {tail.split(".")[0]} if tail else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("semgbook.")}
    return found - {"__version__"}


def import_graph():
    "Module name -> the modules it imports, in the order of their numbers."
    order = numbers()
    return {name: sorted(imported(tree), key=lambda m: (order.get(m, 100), m)) for name, tree in sources().items()}


def table():
    "Rows of the page's table: module name -> (notebook, imports or None when planned)."
    cells = json.loads((ROOT / "nbs" / "architecture.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    rows = re.findall(r"^\| \[?(\d\d_\w+)\]?(?:\([^)]*\))? \| (\w+) \| ([^|]+?) \|", text, re.M)
    assert len(rows) > 20, "the table is not where this test looks for it"
    return {module: (notebook, None if "planned" in cell else [] if cell == "none" else cell.split(", ")) for notebook, module, cell in rows}


def test_the_table_is_the_import_graph():
    "Both ways: each module of the package has its row with just its imports, each row that is not planned has its module."
    graph, rows = import_graph(), table()
    assert len(graph) > 5
    assert all(notebook[3:] == module for module, (notebook, _) in rows.items())
    for module, imports in graph.items():
        said = rows.get(module, ("", "no row"))[1]
        assert said == imports, f"nbs/architecture.ipynb says {module} imports {said}; its row should read: {', '.join(imports) or 'none'}"
    assert {m for m, (_, imports) in rows.items() if imports is not None} == set(graph), "a row without its module, or still marked planned"
    assert set(numbers()) == set(graph), "a component notebook that exports no module, or a module without its notebook"


def test_numbers_are_in_order_and_used_once():
    order = [int(notebook[:2]) for notebook, _ in table().values()]
    assert order == sorted(set(order))


def test_imports_go_to_lower_numbers():
    order = numbers()
    upwards = [f"{order[m]:02d}_{m} imports {order.get(o)}_{o}" for m, others in import_graph().items() for o in others if order.get(o, 100) >= order[m]]
    assert not upwards, upwards


def test_training_needs_only_light_imports():
    "All modules but those named above, imported in one fresh process, bring none of the heavy packages along."
    light = [name for name in sources() if name not in OWN_HEAVY]
    code = "import importlib, json, sys\n" \
           "came = {}\n" \
           f"for name in {light!r}:\n" \
           "    importlib.import_module('semgbook.' + name)\n" \
           f"    for heavy in sorted(set({sorted(HEAVY)!r}) & set(sys.modules) - set(came)): came[heavy] = name\n" \
           "print(json.dumps(came))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}, "package -> the semgbook module that brought it"


def test_no_drawer_for_odds_and_ends():
    "A module is named after what it is about."
    assert not {"utils", "util", "core", "common", "helpers", "misc"} & set(sources())


def test_frozen_is_what_travels():
    "Every public dataclass is frozen: nobody changes a batch or a recipe in passing."
    loose = [f"{name}.{node.name}" for name, tree in sources().items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
             for mark in map(ast.unparse, node.decorator_list) if mark.startswith("dataclass") and "frozen=True" not in mark]
    assert not loose, loose


def test_exports_keep_the_house_rules():
    "No star import, no fastcore, no patching in what is exported."
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), name
                assert (node.module or "").split(".")[0] not in {"fastcore", "nbdev"}, name
            assert not (isinstance(node, ast.Name) and node.id in {"patch", "patch_to"}), name


@pytest.mark.parametrize("name", sorted(numbers()))
def test_everything_exported_can_be_shown(name):
    "The site shows a signature of each; a class that inherits one with names nobody can resolve stops it."
    from nbdev.showdoc import show_doc
    module = importlib.import_module(f"semgbook.{name}")
    own = [getattr(module, n) for n in module.__all__ if getattr(getattr(module, n), "__module__", "") == module.__name__ and callable(getattr(module, n))]
    assert all(str(show_doc(thing)) for thing in own)
