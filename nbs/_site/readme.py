"Writes README.md from nbs/index.ipynb: its markdown as it stands, its shown code as blocks, its links seen from the top."
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def block(cell):
    "One cell as markdown; nothing for a hidden one."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    shown = "\n".join(line for line in source.splitlines() if not line.startswith("#|")).strip()
    return f"```python\n{shown}\n```" if shown and not re.search(r"^#\|\s*hide", source, re.M) else ""


def from_top(link):
    "A link of a page in nbs, as README.md has to write it."
    target = link[1]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    return f"]({target[3:] if target.startswith('../') else 'nbs/' + target})"


def readme():
    "The text of README.md."
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(filter(None, map(block, cells)))
    return "<!-- written from nbs/index.ipynb by make export: edit that -->\n\n" + re.sub(r"\]\(([^)\s]+)\)", from_top, text) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
