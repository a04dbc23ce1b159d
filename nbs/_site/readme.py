"""Writes README.md from nbs/index.ipynb: its markdown as it stands, its shown code as blocks, what its `echo: false` cells give, its links seen from the top."""
import ast
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_cell(source, names):
    "What a cell's last line gives; `names` holds what the cells before it have made."
    *first, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        return exec(source, names)
    exec(compile(ast.Module(first, []), "nbs/index.ipynb", "exec"), names)
    return eval(compile(ast.Expression(last.value), "nbs/index.ipynb", "eval"), names)


def table(frame):
    "A data frame of texts as a markdown table, numbers to the right."
    right = ["---:" if all(re.fullmatch(r"[-+\d.]+", cell) for cell in frame[name]) else "---" for name in frame]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(frame), right, *frame.values.tolist()])


def block(cell, names):
    "One cell as markdown; nothing for a hidden one. Code runs, so that what it gives is never typed."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    given, shown = run_cell(source, names), "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip()
    if re.search(r"^#\|\s*echo:\s*false", source, re.M):
        return table(given)
    return f"```python\n{shown}\n```" if shown and not re.search(r"^#\|\s*hide", source, re.M) else ""


def from_top(link):
    "A link of a page in nbs, as README.md has to write it."
    target = link[1]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    return f"]({target[3:] if target.startswith('../') else 'nbs/' + target})"


def readme():
    "The text of README.md."
    cells, names = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"], {}
    os.chdir(ROOT / "nbs")
    text = "\n\n".join(filter(None, [block(cell, names) for cell in cells]))
    text = text.replace("\n```\n\n```python\n", "\n")  # cells in a row are one block
    return "<!-- written from nbs/index.ipynb by make export: edit that -->\n\n" + re.sub(r"\]\(([^)\s]+)\)", from_top, text) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
