"""What the rendered pages still want: code whose wrapped lines hang, figures that open by themselves, cells of tables with room for words. `finish.py FOLDER` does it to a built site."""
import re
import sys
from pathlib import Path

CODE = re.compile(r'(<div class="(?:(?!output)[^"])*highlight-\w+ notranslate"><div class="highlight"><pre>)(?:<span></span>)?(.*?)(</pre>)', re.S)
FIGURE = re.compile(r'<img alt="[^"]*" src="([^"]*_images/[0-9a-f]{40,}\.png)"([^>]*?)\s*/?>')

WORDS = re.compile(r"<td( [^>]*)?>(?=[^<]{32,}</td>)")


def hanging(match):
    "The lines of a code block, each in a box that knows how far in it begins, so that what does not fit goes on further in than that."
    lines = match[2].removesuffix("\n").split("\n")
    depths = [len(text) - len(text.lstrip(" ")) for text in (re.sub(r"<[^>]*>", "", line) for line in lines)]
    return match[1] + "".join(f'<span class="sg-line" style="--in:{depth}">{line}\n</span>' for depth, line in zip(depths, lines, strict=True)) + match[3]


def roomy(match):
    "A cell of many words, which a table that is too wide would squeeze to the length of the longest."
    attributes = match[1] or ""
    return f"<td{attributes}>".replace(' class="', ' class="sg-words ') if "class=" in attributes else f'<td{attributes} class="sg-words">'


def finish_page(text):
    "One page; a second time changes nothing."
    if "sg-line" in text or "sg-figure" in text or "sg-words" in text:
        return text
    text = FIGURE.sub(r'<a class="sg-figure" href="\1" title="the figure by itself"><img alt="figure; the text beside it says what it shows" src="\1"\2 /></a>', text)
    text = WORDS.sub(roomy, text)
    return CODE.sub(hanging, text)


def finish_pages(folder):
    "Every page of a built site."
    for page in sorted(Path(folder).rglob("*.html")):
        if "_static" not in page.relative_to(folder).parts:
            page.write_text(finish_page(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    finish_pages(sys.argv[1])
