"How Sphinx renders the pages that build.py prepared."
import sys
from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
import build  # noqa: E402

ini = ConfigParser()
ini.read(here.parents[1] / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
project, author, release, copyright = cfg["title"], cfg["author"], cfg["version"], cfg["copyright"]
language = "en"

extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_html", "jupyter_execute"]
nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "the code"
nb_mime_priority_overrides = [("html", "text/html", 0)]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist"] + (["dollarmath"] if build.mathjax() else [])
myst_heading_anchors = 4
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
mathjax_path = "tex-svg.js"

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = [str(here.parents[1] / "_pages" / "_static")]
html_css_files = ["semgbook.css"]
html_js_files = ["sg-plotly.js"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = html_copy_source = False
html_sidebars = {page: [] for page in ("index", "architecture", "decisions", "glossary", "report", "contributing", "changelog", "data", "reports")}
html_theme_options = {
    "logo": {"text": project},
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"], "footer_end": [],
    "navigation_with_keys": False,
}
