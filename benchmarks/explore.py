"""How long a page with controls takes to follow a slider: in the Python process, and in a real browser until the picture has changed.

    python benchmarks/explore.py [--moves 15] [--browser] [--presses 6]

Every slider of every page is moved `--moves` times; given are median and worst of the clock and of processor time, in milliseconds, from the
change of the value until the message for the browser is made. With `--browser` the pages are opened in JupyterLab in Chromium, and an arrow key
is pressed on one slider of each; the time runs from the key to the first change of what is drawn. As the straightforward formulation, each page's
figures are made and encoded from nothing and the HTML with plotly's library around them, which is what an output cell that is cleared and filled again does.
Recordings are the embedded corpus; models are the tiny runs of `some_runs`. Leaves benchmarks/results/explore.json.
"""
import argparse
import json
import os
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import plotly.graph_objects as go

from semgbook.benches import architecture_bench, augmentation_bench, session_browser
from semgbook.encoders import ENCODERS
from semgbook.repro import atomic_write
from semgbook.session import open_corpus
from semgbook.synthetic import embedded_corpus, project_root
from semgbook.viewers import emission_viewer, run_comparer, some_runs

ROOT = Path(__file__).resolve().parents[1]


def panels():
    "Name -> panel, each as its page makes it."
    sessions, runs = open_corpus(embedded_corpus()), some_runs(project_root() / "none", 2)
    return {"session_browser": session_browser(sessions), "augmentation_bench": augmentation_bench(sessions[0]), "architecture_bench": architecture_bench(ENCODERS),
            "emission_viewer": emission_viewer(runs), "run_comparer": run_comparer(runs)}


def stops(control, moves):
    "Positions of a slider, evenly spread and never twice the same in a row."
    whole = isinstance(control.value, int)
    values = [control.min + (control.max - control.min) * (i + 1) / (moves + 1) for i in range(moves)]
    return [round(v) if whole else v for v in values]


def timed(what):
    "Clock and processor milliseconds."
    clock, processor = time.perf_counter(), time.process_time()
    what()
    return 1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processor)


def measured(panel, moves):
    "Slider -> its times; the panel is brought back to where it was."
    found = {}
    for name, control in panel.controls.items():
        if not hasattr(control, "step"): continue
        start = control.value
        laps = [timed(partial(panel.move, **{name: v})) for v in stops(control, moves)]
        panel.move(**{name: start})
        if panel.note.value: raise SystemExit(f"{name}: {panel.note.value}")
        clock, processor = zip(*laps, strict=True)
        found[name] = {"clock_median_ms": round(median(clock), 1), "clock_worst_ms": round(max(clock), 1),
                       "processor_median_ms": round(median(processor), 1), "processor_worst_ms": round(max(processor), 1)}
    return found


def afresh(panel, moves=3):
    "Processor time of drawing the same and making the HTML of an output cell."
    def whole():
        for shown in panel.draw(**panel.values):
            if isinstance(shown, go.Figure): shown.to_html(include_plotlyjs=True)
    return round(median(timed(whole)[1] for _ in range(moves)), 1)


def in_browser(presses):
    "Page -> milliseconds from the key to the changed picture."
    sys.path.insert(0, str(ROOT / "tests"))
    from playwright.sync_api import sync_playwright
    from test_lab import PAGES, as_project, chromium, jupyter_server, opened, push
    found = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        with jupyter_server(as_project(Path(folder))) as address:
            browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            for name, (label, _) in PAGES.items():
                with opened(browser, address, name) as (page, _):
                    laps = [push(page, label) for _ in range(presses)]
                found[name] = {"slider": label, "median_ms": round(median(laps)), "worst_ms": round(max(laps))}
                print(name, found[name], flush=True)
            browser.close()
    return found


def main():
    "Measure and write."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moves", type=int, default=15)
    parser.add_argument("--presses", type=int, default=6)
    parser.add_argument("--browser", action="store_true")
    args = parser.parse_args()
    found = {"machine": {"platform": platform.platform(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}, "moves": args.moves, "pages": {}}
    for name, panel in panels().items():
        sliders = measured(panel, args.moves)
        worst = max(s["processor_median_ms"] for s in sliders.values())
        found["pages"][name] = {"sliders": sliders, "afresh_processor_ms": (whole := afresh(panel)), "ratio_afresh_to_slowest_slider": round(whole / worst, 2)}
        print(name, json.dumps(found["pages"][name], indent=1), flush=True)
    if args.browser: found["browser"] = in_browser(args.presses)
    atomic_write(ROOT / "benchmarks" / "results" / "explore.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
