"""Dead links of a built site: every href and src of every page, and every anchor they name. `links.py FOLDER` prints them and fails."""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Links(HTMLParser):
    "What one page points at, and what in it can be pointed at."

    def __init__(self, text):
        super().__init__()
        self.targets, self.anchors = [], {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key) and (key == "id" or tag == "a")}
        self.targets += [found[key] for key in ("href", "src", "poster") if found.get(key) is not None]


def broken_links(folder):
    "`page: target (why)` for each link of the site in `folder` that a reader who has only the site cannot follow."
    folder = Path(folder).resolve()
    pages = {file: Links(file.read_text(encoding="utf-8")) for file in sorted(folder.rglob("*.html"))
             if "_static" not in file.relative_to(folder).parts}
    broken = []
    for page, links in pages.items():
        for target in dict.fromkeys(links.targets):
            why = what_is_wrong(target, page, pages, folder)
            if why:
                broken.append(f"{page.relative_to(folder)}: {target} ({why})")
    return broken


def what_is_wrong(target, page, pages, folder):
    "Why a link does not work; empty where it does. Other hosts are not asked: a build must not depend on them."
    parts = urlsplit(target)
    if parts.scheme in ("http", "https", "mailto", "data", "javascript"):
        return "no host" if parts.scheme.startswith("http") and not parts.netloc else ""
    if parts.scheme or parts.netloc:
        return "neither on this site nor on the web"
    place = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if place.is_dir():
        place = place / "index.html"
    if not place.is_relative_to(folder):
        return "outside the site"
    if not place.exists():
        return "no such file"
    if parts.fragment and place in pages and unquote(parts.fragment) not in pages[place].anchors:
        return "no such anchor"
    return ""


if __name__ == "__main__":
    found = broken_links(sys.argv[1])
    print("\n".join(found) or "every link leads somewhere")
    sys.exit(bool(found))
