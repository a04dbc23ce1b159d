"Tutorials keep what they promise: they are found, they assert something, and every command they print is one that the program takes."
import ast
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from semgbook.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "nbs" / "_site"))
import build  # noqa: E402

TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
assert len(TUTORIALS) >= 5, "the tutorials are not where this test looks for them"


def sources(path, kind):
    "Sources of a notebook's cells of one kind."
    return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def commands():
    "(file, command line) of every shell block in the notebooks and the markdown files of the front."
    texts = {path: "\n".join(sources(path, "markdown")) for path in [*TUTORIALS, ROOT / "nbs" / "index.ipynb"]}
    texts |= {ROOT / name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "reports/README.md")}
    for path, text in texts.items():
        for block in re.findall(r"^[ ]*```sh\n(.*?)```", text, flags=re.S | re.M):
            for line in filter(None, map(str.strip, block.splitlines())):
                yield path.relative_to(ROOT).as_posix(), line


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_asserts_and_leads_on(path):
    "At least two properties are asserted, imports stand on top, and the page ends with where to go."
    asserts = [n for source in sources(path, "code") for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assert)]
    values = [n for n in asserts if not (isinstance(n.test, ast.Constant))]
    assert len(values) >= 2, "a tutorial that cannot fail"
    headings = re.findall(r"^## (.+?)\s*$", "\n".join(sources(path, "markdown")), re.M)
    assert headings[-1] == "Where it goes next" and "What to remember" in headings, headings


def test_the_order_names_every_tutorial():
    "The site's reading order knows every tutorial, and the front page leads to each of them."
    names = {path.stem for path in TUTORIALS}
    assert names <= set(build.FIRST), f"add to FIRST in nbs/_site/build.py: {sorted(names - set(build.FIRST))}"
    front = "\n".join(sources(ROOT / "nbs" / "index.ipynb", "markdown"))
    assert not {name for name in names if f"tutorials/{name}.ipynb" not in front}


def test_commands_are_understood():
    "Every `semgbook` line parses as the program parses it."
    lines = [(file, line) for file, line in commands() if re.match(r"(\S*/)?semgbook\s", line)]
    assert len(lines) > 15
    for file, line in lines:
        words = shlex.split(line, comments=True)[1:]
        try:
            build_parser().parse_args(words)
        except SystemExit as refused:
            raise AssertionError(f"{file}: the program does not take: {line}") from refused


def test_make_targets_exist():
    "Every `make` line names targets that there are."
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    asked = [(file, line) for file, line in commands() if line.startswith("make ")]
    assert asked
    for file, line in asked:
        named = [w for w in shlex.split(line, comments=True)[1:] if "=" not in w]
        assert named and set(named) <= targets, f"{file}: {line}"


def test_commands_would_be_refused():
    "The check above can fail: a verb, an option and a target that do not exist."
    for words in (["teach", "e00"], ["run", "e00", "--sead", "1"]):
        with pytest.raises(SystemExit):
            build_parser().parse_args(words)
