"The pages with controls in JupyterLab, in a real browser: open, run, move a slider, see the change."
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# page -> label of a slider, and how often an arrow key is pressed on it
PAGES = {"session_browser": ("now (s)", 2), "augmentation_bench": ("rotation (electrodes)", 1), "architecture_bench": ("hop (samples)", 1),
         "emission_viewer": ("window", 1), "run_comparer": ("smooth (epochs)", 2)}
IDLE = "() => { const w = window.jupyterapp?.shell.currentWidget; return w?.sessionContext?.session?.kernel?.status === 'idle' && w.content.model.cells.length > 3 }"
DONE = """() => { const w = window.jupyterapp.shell.currentWidget, cells = [...w.content.model.cells].filter(c => c.type === 'code');
                  return w.sessionContext.session.kernel.status === 'idle' && cells.every(c => c.executionCount !== null || c.sharedModel.outputs.some(o => o.output_type === 'error')) }"""
ERRORS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code')
                  .flatMap(c => c.sharedModel.outputs).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)"""
# what a reader sees: the drawn figures without the ids that each drawing makes anew, and the texts; hashed inside the page
SEEN = """const seen = () => { const parts = [...document.querySelectorAll('.jp-OutputArea .js-plotly-plot .main-svg, .jp-OutputArea .widget-html-content')].map(e => e.outerHTML.replace(/id="[^"]*"|url\\([^)]*\\)|clip-path="[^"]*"/g, ''));
                   let h = 0; for (const c of parts.join('')) h = (31 * h + c.charCodeAt(0)) | 0; return h; }"""


EMPTY = "() => [...document.querySelectorAll('.jp-OutputArea .js-plotly-plot')].filter(e => !e.data.length || !e.calcdata.some(c => c.length)).length"


def chromium():
    "Where Chromium is, or a skipped test that says what is missing."
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'semgbook[browser]'")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found: pytest.skip("no Chromium on the PATH: apt-get install chromium")
    return found


def free_port():
    "A port nobody listens to."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def as_project(folder, runs=None):
    "A project with copies of the pages, so that saving them touches nothing; recordings are those of this one."
    (ROOT / "data" / "synthetic").mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "nbs" / "explore", folder / "nbs" / "explore", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "data").symlink_to(ROOT / "data")
    if runs:
        (folder / "reports").mkdir()
        (folder / "reports" / "runs").symlink_to(runs)
    return folder


@contextmanager
def jupyter_server(folder):
    "JupyterLab on a folder, with settings of its own; gives its address."
    port, own = free_port(), {f"JUPYTER_{k}_DIR": str(folder / ".jupyter" / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}
    quiet = folder / ".jupyter" / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--IdentityProvider.token=", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}",
               "--LabApp.expose_app_in_browser=True"]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        late = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < late, (folder / "server.log").read_text()
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).read(); break
            except OSError: time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def opened(browser, address, name, timeout_s=600):
    "A page, opened in JupyterLab and run to its end; gives it with the list of what its console complains of."
    page, complaints = browser.new_page(viewport={"width": 1500, "height": 2200}), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        page.goto(f"{address}/lab/workspaces/{name}/tree/nbs/explore/{name}.ipynb", timeout=1000 * timeout_s, wait_until="commit")  # JupyterLab may go on to another address by itself
        page.wait_for_function(IDLE, timeout=1000 * timeout_s)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(DONE, timeout=1000 * timeout_s)
        page.locator(".jp-OutputArea-output .js-plotly-plot .main-svg").first.wait_for(timeout=1000 * timeout_s)
        settled(page)
        yield page, complaints
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    finally: page.close()


def settled(page):
    "Wait until the picture has stopped changing; what is seen then."
    last = None
    for _ in range(120):
        now = page.evaluate(f"() => {{ {SEEN}; return seen() }}")
        if now == last: return now
        last = now
        page.wait_for_timeout(400)
    raise AssertionError("the picture never settles")


def push(page, label, key="ArrowRight", wait_s=60):
    "Press an arrow key on the slider of that name; milliseconds until plotly has drawn a figure again."
    handle = page.locator(f".widget-inline-hbox:has(label:text-is('{label}')) .noUi-handle").first
    handle.focus()
    settled(page)
    waiting = f"""() => {{ window.semgbookWait = new Promise((ok, no) => {{ let start = null;
        document.addEventListener('keydown', () => {{ start = performance.now(); setTimeout(() => no(new Error('the figure was not drawn again')), {1000 * wait_s}); }}, {{once: true, capture: true}});
        for (const e of document.querySelectorAll('.jp-OutputArea .js-plotly-plot')) e.once('plotly_afterplot', () => start !== null && ok(performance.now() - start)); }}) }}"""
    page.evaluate(waiting)
    page.keyboard.press(key)
    return page.evaluate("() => window.semgbookWait")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Chromium and a JupyterLab server with the pages."
    binary = chromium()
    from playwright.sync_api import sync_playwright
    folder = as_project(tmp_path_factory.mktemp("lab"))
    with sync_playwright() as play, jupyter_server(folder) as address:
        browser = play.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser, address
        browser.close()


@pytest.mark.parametrize("name", PAGES)
def test_page_follows_its_slider(lab, name):
    "Run all, look, press an arrow key, look again: another picture, no error in a cell, none in the console."
    browser, address = lab
    label, presses = PAGES[name]
    shots = os.environ.get("SEMGBOOK_SHOTS")  # a folder for pictures of each page
    with opened(browser, address, name) as (page, complaints):
        assert page.evaluate(ERRORS) == []
        before, wide = settled(page), page.evaluate("() => Math.min(...[...document.querySelectorAll('.jp-OutputArea .js-plotly-plot')].map(e => e.offsetWidth))")
        assert page.evaluate(EMPTY) == 0 and wide > 800, "a figure is empty, or narrower than the page"
        if shots: page.screenshot(path=f"{shots}/{name}_before.png")
        for _ in range(presses): assert push(page, label) > 0
        assert settled(page) != before and page.evaluate(EMPTY) == 0
        if shots: page.screenshot(path=f"{shots}/{name}_after.png")
        assert page.evaluate(ERRORS) == []
        assert page.locator(".jp-OutputArea pre[style*='A33A00']").count() == 0, "the page shows a complaint"
        assert complaints == []


def test_mistake_is_shown_and_the_picture_stays(lab):
    "An encoder line that is none: the message appears above the picture, which does not change."
    browser, address = lab
    with opened(browser, address, "architecture_bench") as (page, complaints):
        typed = page.locator(".widget-text input").first
        bars = page.locator(".js-plotly-plot .bars path").count()
        typed.fill("norm mlpp(features=64)")
        note = page.locator(".jp-OutputArea pre[style*='A33A00']")
        note.wait_for(timeout=60_000)
        assert "mlpp" in note.inner_text() and "^" in note.inner_text() and page.locator(".js-plotly-plot .bars path").count() == bars > 0
        typed.fill("norm mlp(features=64) tds:3(channels=8)")
        note.wait_for(state="detached", timeout=60_000)
        assert page.locator(".js-plotly-plot .bars path").count() > bars
        assert complaints == []


def test_every_page_is_tried():
    "A new page needs a slider to be tried on."
    assert {p.stem for p in (ROOT / "nbs" / "explore").glob("*.ipynb")} == set(PAGES)
