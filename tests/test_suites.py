"Suites survive: nothing is done twice, one failure stays alone, and after a kill at any moment the results are the same."
import html
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from toys import toy_corpus
from traitlets.config import Config

from semgbook.book import EXPERIMENTS, HYBRID_GROUPS, KAO_TABLES, SUITES, BookError, get_suite, planned_runs, run_experiment
from semgbook.cli import main
from semgbook.engines import Ended, EngineError, LocalEngine
from semgbook.recipes import HYBRIDS, preset, requested
from semgbook.runs import carry_out, read_json, run_state, start_run, write_status
from semgbook.suites import (NotebookView, PlainView, SuiteRow, SuiteWork, TerminalView, clean_drafts, experiments_read, job_of, plan_suite, remedy, run_suite, stale_comparisons, suite_html, suite_lines, time_left)

SMALL = {"name": "toy", "data.users": [], "data.window_s": 2.0, "training.epochs": 16, "training.batch_size": 4, "encoder": "norm mlp(features=16) tds:1(channels=4,kernel=8)",
         "augment.alignment_jitter": 10, "augment.rotation": 1, "optimiser.lr": 0.01, "optimiser.warmup": 0.1, "blank_bias": 2.0}


def entry(corpus, seed=0, experiment="e00", **changes): return [experiment, {"corpus": str(corpus), "seed": seed, "overrides": json.dumps({**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}})}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return toy_corpus(tmp_path_factory.mktemp("toy"), seconds=60.0)


@pytest.fixture
def suite(tmp_path):
    "A function that writes entries as a suite; its file."
    def write(*entries, name="toy"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(entries))
        return path
    return write


class Recorder(PlainView):
    "Keeps what would be shown."

    def __init__(self): self.events, self.tables = [], []
    def event(self, line): self.events.append(line)
    def table(self, draw, last=False): self.tables.append(draw(30, 120))


class Stub:
    "Carries out no run: ends jobs one by one, the last started first, and leaves the files of a run that went as told."

    gpus = ()

    def __init__(self, slots=1, fates=None): self.slots, self.fates, self.running, self.started, self.together, self.stopped = slots, fates or {}, [], [], [], False

    def submit(self, job):
        self.running.append(job)
        self.started.append(job.name)
        self.together.append({j.name for j in self.running})

    def ended(self, wait_s=0.0):
        job = self.running.pop()
        runs = planned_runs(job.words[1], given(job), job.words[-1])
        fate = next((self.fates[key] for key in (job.name, runs[-1].run_id) if key in self.fates), "done")
        if fate == "interrupt": raise KeyboardInterrupt
        for run in runs[::-1]:
            run.folder.mkdir(parents=True, exist_ok=True)
            hit = run.run_id in self.fates or job.name in self.fates
            if fate == "failed" and hit: write_status(run, "failed", error="ValueError: of no use", traceback="Traceback"); return [Ended(job.name, 1, "ValueError: of no use")]
            if fate == "killed" and hit: return [Ended(job.name, -9, "ended by signal 9")]
            if not (run.folder / "results.json").exists(): (run.folder / "results.json").write_text(json.dumps({"phases": {"test": {"cer": 12.0}}}))
        (runs[0].folder / "notebook.ipynb").write_text('{"metadata": {}}')
        return [Ended(job.name, 0)]

    def stop(self): self.stopped, self.running = True, []


def given(job):
    "The parameters in a job's words, typed as the notebook wants them."
    pairs = dict(word.split("=", 1) for word in job.words[3:-2:2])
    return {k: int(v) if k == "seed" else v for k, v in pairs.items()}


# --- what a suite is ----------------------------------------------------------------------------

def test_a_name_or_a_file_and_nothing_else(suite, tmp_path):
    assert get_suite("smoke") == SUITES["smoke"] and get_suite(suite(["e00", {"seed": 3}])) == (("e00", {"seed": 3}),)
    for text, says in (("{}", "not a list"), ('[["e00"]]', "not a list"), ('[["e000", {}]]', "e00"), ("[", "not valid JSON")):
        (tmp_path / "odd.json").write_text(text)
        with pytest.raises(BookError, match=says): get_suite(tmp_path / "odd.json")
    with pytest.raises(BookError, match="smoke"): run_suite("smke", tmp_path)


def test_suites_of_the_papers_cover_their_tables_and_figures():
    methods = {}
    for e, p in SUITES["paper_lstm"]: methods.setdefault(e, set()).add(preset(p["preset_name"]).method)
    assert methods["e10"] == {"BiLSTM"} and "BiLSTM" in EXPERIMENTS["e10"].published, "Table 2"
    assert methods["e30"] | methods["e31"] == set(KAO_TABLES), "Tables 3 and 4"
    shown = {p["preset_name"] for e, p in SUITES["paper_hybrids"] if e == "e20"}
    for figures, stacks in HYBRID_GROUPS.items(): assert {f"hybrid_{s}_embedded" for s in stacks} <= shown, figures
    ninth = {json.loads(p["overrides"])["method"] for e, p in SUITES["paper_hybrids"] if e == "e22"}
    assert ninth >= set(EXPERIMENTS["e22"].published), "figure 9"
    assert {s for stacks in HYBRID_GROUPS.values() for s in stacks} <= set(HYBRIDS)


# --- what is planned ----------------------------------------------------------------------------

def test_a_plan_starts_nothing_and_knows_what_is_missing(suite, corpus, tmp_path):
    rows = plan_suite(suite(entry(corpus), entry(corpus, method="another label"), ["e00", {"sede": 1}], ["e00", {"corpus": "no such corpus"}]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and [r.state for r in rows] == ["new", "failed", "failed"], "one folder, one row"
    assert "seed" in rows[1].note and "no such corpus" in rows[2].note and rows[1].folder is None


def test_the_state_of_an_entry_is_that_of_its_runs(suite, corpus, tmp_path):
    row, = plan_suite(suite(["e11", {"preset_name": "tds_finetuned_embedded"}]), tmp_path)
    own, source = row.runs
    for folder in (own.folder, source.folder): folder.mkdir(parents=True)
    write_status(source, "failed", error="ValueError: too short")
    assert row.look().state == "failed" and source.run_id in row.note and "too short" in row.note
    write_status(source, "running", epoch=3, epochs=9)
    assert row.look().state == "running"
    (source.folder / "results.json").write_text("{}")
    assert row.look().state == "new" and row.missing() == [own.folder]
    (own.folder / "results.json").write_text("{}")
    assert row.look().state == "new" and row.missing() == [], "trained, but its notebook is missing"
    (own.folder / "failed.ipynb").write_text("{}")
    assert row.look().state == "failed"
    (own.folder / "notebook.ipynb").write_text("{}")
    assert row.look().state == "done"


def test_words_of_a_job_lead_to_the_planned_run(suite, corpus, tmp_path):
    row, = plan_suite(suite(entry(corpus, 3, method="a = b -p c")), tmp_path)
    job = job_of(row, LocalEngine(2))
    assert planned_runs("e00", given(job), tmp_path)[0].folder == row.folder and job.words[-2:] == ("--out", str(tmp_path)) and job.cpus >= 1 and job.gpus == 0
    gpu, = plan_suite(suite(entry(corpus, training__device="cuda")), tmp_path)
    assert job_of(gpu, LocalEngine(1, gpus=(0,))).gpus == 1 == job_of(row, LocalEngine(1, gpus=(0,))).gpus


# --- what runs beside what ----------------------------------------------------------------------

FINETUNED = tuple(["e11", {"preset_name": "tds_finetuned_embedded", "overrides": json.dumps({"training.epochs": n})}] for n in (5, 6, 7))


def test_two_jobs_never_make_one_run(suite, tmp_path):
    engine = Stub(slots=3)
    rows = run_suite(suite(*FINETUNED, ["e12", {}]), tmp_path, engine=engine, view=Recorder())
    assert [r.state for r in rows] == ["done"] * 4 and engine.stopped
    a, b, c, other = (r.name for r in rows)
    assert engine.together[0] == {a} and {a, other} in engine.together and not any({a, x} <= t for t in engine.together for x in (b, c)), "the first makes the generic network, nobody beside it"
    assert {b, c} in engine.together or {b, c, other} in engine.together, "then they need not wait for each other"


def test_an_entry_that_is_itself_needed_by_others_goes_first(suite, tmp_path):
    engine = Stub(slots=2)
    rows = run_suite(suite(FINETUNED[0], ["e10", {"preset_name": "tds_generic_embedded"}]), tmp_path, engine=engine, view=Recorder())
    assert engine.started == [rows[1].name, rows[0].name] and engine.together[0] == {rows[1].name}


def test_a_failed_source_is_tried_once_and_stops_nobody_else(suite, tmp_path):
    path = suite(*FINETUNED, ["e12", {}])
    source = plan_suite(path, tmp_path)[0].runs[1].run_id
    for resume, expected in ((False, 2), (False, 0), (True, 1)):
        engine = Stub(fates={source: "failed"})
        rows = run_suite(path, tmp_path, resume, engine, Recorder())
        assert len(engine.started) == expected and [r.state for r in rows] == ["failed"] * 3 + ["done"]
        assert all(source in r.note for r in rows[1:3])
    assert "3 failed of 4" in remedy("toy", rows) and "--resume" in remedy("toy", rows)
    engine = Stub()
    assert [r.state for r in run_suite(path, tmp_path, True, engine, Recorder())] == ["done"] * 4 and len(engine.started) == 3


def test_what_was_killed_before_it_wrote_anything_is_interrupted(suite, corpus, tmp_path):
    path = suite(entry(corpus), entry(corpus, 1))
    first = plan_suite(path, tmp_path)[0].name
    rows = run_suite(path, tmp_path, engine=Stub(fates={first: "killed"}), view=(view := Recorder()))
    assert any(line.startswith("interrupted") and first in line for line in view.tables[-1]), "the last word names what is left"
    assert [r.state for r in rows] == ["interrupted", "done"] and "signal 9" in read_json(rows[0].folder / "status.json")["error"]
    lazy = Stub()
    run_suite(path, tmp_path, engine=lazy, view=Recorder())
    assert lazy.started == [], "an earlier call's leftovers wait for resume"


def test_a_run_of_another_living_process_is_waited_for(suite, corpus, tmp_path):
    path = suite(entry(corpus), entry(corpus, 1))
    other = plan_suite(path, tmp_path)[0].runs[0]
    other.folder.mkdir(parents=True)
    write_status(other, "running", epoch=1, epochs=2)

    class Meanwhile(Stub):
        def ended(self, wait_s=0.0):
            if self.running: return super().ended(wait_s)
            (other.folder / "results.json").write_text('{"phases": {}}')
            (other.folder / "notebook.ipynb").write_text('{"metadata": {}}')
            return []

    engine = Meanwhile()
    rows = run_suite(path, tmp_path, True, engine, Recorder())
    assert rows[0].name not in engine.started and [r.state for r in rows] == ["done", "done"]


def test_a_run_has_one_worker(corpus, tmp_path):
    run = start_run("e00", requested("tds_embedded", 0, str(corpus), json.dumps({**SMALL, "training.epochs": 1})), tmp_path)
    hold = f"import fcntl, time; f = open({str(run.folder / 'recipe.json')!r}, 'rb+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    with pytest.raises(RuntimeError, match="another process"): carry_out(run)
    assert run.state == "new"
    holder.kill()
    holder.wait()
    assert carry_out(run, lambda line: None)["epochs"] == 1, "the lock of a dead process is nobody's"


def test_a_job_that_no_machine_can_take_fails_alone(suite, corpus, tmp_path):
    class Small(Stub):
        def submit(self, job):
            if job.gpus: raise EngineError("asks for 1 GPUs")
            super().submit(job)

    rows = run_suite(suite(entry(corpus, training__device="cuda"), entry(corpus, 1), ["e00", {"sede": 0}]), tmp_path, engine=Small(), view=Recorder())
    assert [r.state for r in rows] == ["failed", "done", "failed"] and "GPU" in rows[0].note
    assert "1 failed of 3" in remedy("toy", rows) and "1 of 3 runs cannot be planned" in remedy("toy", rows)


def test_ctrl_c_stops_the_engine(suite, corpus, tmp_path):
    path = suite(entry(corpus), entry(corpus, 1))
    engine = Stub(fates={plan_suite(path, tmp_path)[0].name: "interrupt"})
    with pytest.raises(KeyboardInterrupt): run_suite(path, tmp_path, engine=engine, view=Recorder())
    assert engine.stopped and [r.state for r in plan_suite(path, tmp_path)] == ["interrupted", "new"]


# --- what is shown ------------------------------------------------------------------------------

def test_a_comparison_that_missed_runs_is_executed_again(suite, corpus, tmp_path):
    class Late(Stub):
        def ended(self, wait_s=0.0):
            if len(self.running) > 1: time.sleep(0.02)
            return super().ended(wait_s)

    path, engine = suite(entry(corpus), entry(corpus, 1), entry(corpus, 2)), Late(slots=3)
    view = Recorder()
    rows = run_suite(path, tmp_path, engine=engine, view=view)  # ends them in reverse, so the last row is finished first
    assert engine.started[3:] == [f"{rows[2].name} (comparison)"]
    assert view.events[-1].startswith(f"done        {rows[2].name} (comparison)  "), "its own time, not that of the run"
    assert stale_comparisons(rows) == [rows[2]], "the stub executes no notebook: still stale, as files tell"
    began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 1))
    (rows[2].folder / "notebook.ipynb").write_text(json.dumps({"metadata": {"papermill": {"start_time": began}}}))
    assert stale_comparisons(rows) == []
    assert experiments_read("e31") == {"e30", "e31"} and experiments_read("e00") == {"e00"}


def test_time_left_follows_finished_and_running_runs(suite, corpus, tmp_path):
    rows = plan_suite(suite(*(entry(corpus, s) for s in range(4)), ["e12", {}]), tmp_path)
    assert time_left(rows, rows, 1) is None
    rows[0].state, rows[0].took = "done", 100.0
    assert time_left(rows, rows[1:4], 1) == 300 and time_left(rows, rows[1:4], 2) == 150 and time_left(rows, rows[4:], 1) == 100, "any other kind where there is no better"
    run = rows[1].runs[0]
    run.folder.mkdir(parents=True)
    (run.folder / "history.csv").write_text("epoch,seconds\n0,4.0\n1,6.0\n")
    write_status(run, "running", epoch=2, epochs=30, val_cer=40.0)
    rows[1].state, rows[1].seconds = "running", 12.0
    assert time_left(rows, [], 1) == pytest.approx(28 * 5, abs=1)
    write_status(run, "running", epoch=0, epochs=30, step=3, steps=4, left_s=70.0)
    assert time_left(rows, [], 1) == pytest.approx(70, abs=1), "a run that says so itself, in its first epoch"
    write_status(run, "interrupted", epoch=2, epochs=30, val_cer=40.0)
    rows[1].state = "interrupted"
    assert time_left(rows, [rows[1]], 1) == pytest.approx(100 * 28 / 30)


def test_the_table_says_what_matters_in_the_room_there_is():
    rows = [SuiteRow(f"run {i}", "e00", {}, (), state, note) for i, (state, note) in enumerate((("done", ""), ("new", ""), ("failed", "ValueError: " + "x" * 200), ("running", "process 7 works on it"), ("interrupted", "")))]
    rows = [r for r in rows if r.state != "done"]
    lines = suite_lines("toy", rows, 100.0, 60.0, width=90)
    assert "1 running, 1 failed, 1 interrupted, 1 waiting" in lines[0] and "about 60 s left" in lines[0] and [line.split()[0] for line in lines[1:]] == ["running", "failed", "interrupted", "waits"]
    assert max(map(len, lines)) == 90 and len(suite_lines("toy", rows * 50, 1.0, None, height=20)) == 20


def test_a_terminal_table_is_redrawn_in_place_and_a_file_gets_lines():
    screen, log = io.StringIO(), io.StringIO()
    view = TerminalView(screen)
    view.table(lambda h, w: ["a", "b"])
    view.table(lambda h, w: ["never shown"])  # within a second
    view.event("done")
    view.table(lambda h, w: ["c"], last=True)
    assert screen.getvalue() == "a\nb\n\x1b[2F\x1b[Jdone\nc\n"
    PlainView(log).event("done")
    PlainView(log).table(lambda h, w: ["a"])
    PlainView(log).table(lambda h, w: ["b"], last=True)
    assert log.getvalue() == "done\nb\n"


@pytest.fixture
def suite_in_between(suite, corpus, tmp_path):
    "The rows of a suite of which one run is done, one fails, one runs and two wait."
    rows = plan_suite(suite(*(entry(corpus, s) for s in range(5))), tmp_path)
    for row in rows[:3]: row.folder.mkdir(parents=True)
    (rows[0].folder / "results.json").write_text('{"phases": {"test": {"cer": 12.5}}}')
    (rows[0].folder / "notebook.ipynb").write_text('{"metadata": {}}')
    write_status(rows[1].runs[0], "failed", error="ValueError: a <window> is longer than its session & more")
    write_status(rows[2].runs[0], "running", epoch=3, epochs=16, val_cer=44.0, left_s=120.0)
    for row in rows: row.look()
    rows[0].took, rows[2].seconds = 100.0, 20.0
    return rows


def cells(page): return [re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", row))).strip() for row in re.findall("<tr>(.*?)</tr>", page)]


def test_the_table_of_a_notebook_has_all_rows(suite_in_between):
    rows = suite_in_between
    page = suite_html("toy & co", rows, 100.0, time_left(rows, rows[3:], 1))
    assert "toy &amp; co: 5 runs, 1 running, 1 failed, 2 waiting, 1 done · 2 min, about 6 min left" in page and "<window>" not in page
    listed = cells(page)
    assert [line.split()[0] for line in listed] == ["running", "failed", "waits", "waits", "done"]
    for line, row, words in zip(listed, (rows[k] for k in (2, 1, 3, 4, 0)), ("epoch 3/16, best val CER 44.0 % · 20 s · about 2 min left", "a <window> is longer than its session & more", "", "", "test CER 12.50 % · 2 min"), strict=True):
        assert line.split()[1] == row.name and line.endswith(words), line
    short = cells(suite_html("toy", rows * 30, 1.0, None, most=20))
    assert len(short) == 21 and short[-1] == "... and 130 more"


def test_a_notebook_has_one_table_however_often_it_changes(suite_in_between, monkeypatch):
    "A run goes on epoch by epoch: one message shows the table, every other one replaces it."
    rows, view, clock = suite_in_between, NotebookView(), [1000.0]
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    monkeypatch.setattr(shell, "display_pub", CapturingDisplayPublisher())
    monkeypatch.setattr("semgbook.suites.time", SimpleNamespace(time=time.time, monotonic=lambda: clock[0]))
    try:
        work = SuiteWork("toy", rows, Stub(), view=view)
        for epoch in range(4, 17):
            write_status(rows[2].runs[0], "running", epoch=epoch, epochs=16, left_s=25.0 * (16 - epoch))
            view.event(f"event <{epoch}>")
            for _ in range(3):
                clock[0] += 0.5
                view.table(work.draw)
        view.table(work.draw, last=True)
        messages = shell.display_pub.outputs
    finally: InteractiveShell.clear_instance()
    assert [m["update"] for m in messages] == [False] + [True] * (len(messages) - 1) and 13 <= len(messages) <= 21, "at most one in a second"
    assert len({m["transient"]["display_id"] for m in messages}) == 1
    pages = [m["data"]["text/html"] for m in messages]
    seen = [int(re.search(r"epoch (\d+)/16", cells(page)[0])[1]) for page in pages]
    assert seen == sorted(seen) and set(seen) == set(range(4, 17)) and "about 5 min left" in cells(pages[0])[0] and "about 0 s left" in cells(pages[-1])[0]
    assert "event &lt;16&gt;" in pages[-1] and "event &lt;8&gt;" not in pages[-1] and max(map(len, pages)) < 3 * len(pages[0]), "the last eight events, no more"
    assert all("running" in m["data"]["text/plain"] for m in messages)


def test_an_executed_notebook_keeps_the_last_table_only(tmp_path):
    "In a real kernel: thirty states of a suite, one output."
    cell = nbformat.v4.new_code_cell("""from semgbook.suites import NotebookView, SuiteRow, make_view, suite_html, suite_lines
view, rows = make_view(), [SuiteRow(f"run-{k}", "e00", {}, state="new") for k in range(30)]
for k, row in enumerate(rows):
    row.state = "interrupted" if k % 2 else "failed"
    view.event(row.name)
    view.table(lambda height, width: suite_html("toy", rows, k, 1.0, height) if width is None else suite_lines("toy", rows, k, 1.0, height, width), last=True)
assert type(view) is NotebookView""")
    book = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    only, = book.cells[0].outputs
    assert only.output_type == "display_data" and "30 runs, 15 failed, 15 interrupted" in only.data["text/html"] and "run-29" in only.data["text/plain"]


def test_the_command_line_lists_and_refuses(suite, corpus, tmp_path, capsys):
    path = suite(entry(corpus), ["e00", {"sede": 1}])
    assert main(["book", str(path), "--list", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("waits") and lines[1].startswith("failed") and "seed" in lines[1]
    assert main(["book", "--list"]) == 0 and all(name in capsys.readouterr().out for name in ("smoke",))
    assert main(["book", "smoke", "--engine", "lokal"]) == 2 and "local" in capsys.readouterr().err


# --- kernels and their leavings -----------------------------------------------------------------

def test_drafts_of_dead_processes_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = os.uname().nodename
    names = [f".e00-{host}-{dead.pid}-1.ipynb", f".e00-{host}-{dead.pid}-1.partial.ipynb", f".e00-{host}-{os.getpid()}-1.ipynb", f".e00-elsewhere-{dead.pid}-1.ipynb"]
    for name in names: (tmp_path / name).write_text("{}")
    assert {p.name for p in clean_drafts(tmp_path)} == set(names[:2]) and len(list(tmp_path.iterdir())) == 2


def test_a_failed_notebook_stays_in_the_folder_of_its_run(corpus, tmp_path):
    _, parameters = entry(corpus, data__split_options={"user": "nobody"}, data__split="emg2qwerty_user")
    with pytest.raises(Exception, match="Error"): run_experiment("e00", parameters, tmp_path)
    folder = planned_runs("e00", parameters, tmp_path)[0].folder
    assert run_state(folder) == "failed" and "Traceback" in read_json(folder / "status.json")["traceback"] and (folder / "failed.ipynb").exists() and not list(tmp_path.glob(".e*"))


# --- killed at any moment -----------------------------------------------------------------------

DRIVER = "import sys; from semgbook.suites import run_suite; from semgbook.engines import LocalEngine; rows = run_suite(sys.argv[1], sys.argv[2], sys.argv[3] == 'resume', LocalEngine(2)); sys.exit(any(r.state != 'done' for r in rows))"


def wait_for(condition, what, limit_s=600):
    "Wait until something is so."
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s} s for {what}"
        time.sleep(0.05)


def epochs_done(rows):
    "Epochs that the runs have behind them."
    return sum(read_json(r.folder / "status.json", {}).get("epoch", 0) for r in rows)


def settled(rows): return all(run_state(r.folder) != "running" for r in rows)


def test_killed_at_any_moment_and_resumed_the_results_are_the_same(suite, corpus, tmp_path):
    "The driver's whole group, then by Ctrl-C, then one kernel; the fourth call ends it. Two runs side by side."
    path, root, chance = suite(entry(corpus), entry(corpus, 1)), tmp_path / "runs", random.SystemRandom()
    rows, start = plan_suite(path, root), dict(start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    moments = sorted(chance.sample(range(24), 3))  # epochs of both runs together
    words = [str(path), str(root)]

    def driver(*command): return subprocess.Popen([sys.executable, *command], **start)

    killed = driver("-c", DRIVER, *words, "first")
    wait_for(lambda: epochs_done(rows) >= moments[0] or killed.poll() is not None, f"epoch {moments[0]}")
    time.sleep(chance.random())
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    wait_for(lambda: settled(rows), "the end of all jobs of a killed driver", 60)
    assert not any(r.look().state == "failed" for r in rows), f"killed after {moments[0]} epochs"

    stopped = driver("-m", "semgbook.cli", "book", str(path), "--out", str(root), "--jobs", "2", "--resume")
    wait_for(lambda: epochs_done(rows) >= max(1, moments[1]) and not settled(rows) or stopped.poll() is not None, f"epoch {moments[1]}")
    os.killpg(stopped.pid, signal.SIGINT)
    said, _ = stopped.communicate()
    assert stopped.returncode == 130 and "--resume" in said, said
    assert settled(rows), "a stopped suite leaves nobody at work"
    assert all(r.look().state in ("interrupted", "done", "new") for r in rows)

    hit = driver("-c", DRIVER, *words, "resume")
    at_work = lambda: [r for r in rows if run_state(r.folder) == "running"]
    wait_for(lambda: epochs_done(rows) >= moments[2] and at_work() or hit.poll() is not None, f"epoch {moments[2]}")
    victims = at_work()[:1]
    for row in victims: os.kill(read_json(row.folder / "status.json")["pid"], signal.SIGKILL)
    said, _ = hit.communicate()
    assert hit.returncode == bool(victims), said
    assert [r.name for r in rows if r.look().state != "done"] == [r.name for r in victims], (said, [p.read_text()[-2000:] for p in root.glob("*/log.txt")])

    last = driver("-c", DRIVER, *words, "resume")
    said, _ = last.communicate()
    assert last.returncode == 0, said
    for seed, row in enumerate(plan_suite(path, root)):
        assert row.state == "done" and not (row.folder / "last.ckpt").exists()
        undisturbed = carry_out(start_run("e00", requested("tds_embedded", seed, str(corpus), entry(corpus, seed)[1]["overrides"]), tmp_path / "undisturbed"), lambda line: None)
        assert read_json(row.folder / "results.json") == undisturbed, f"killed after {moments} epochs"
        assert undisturbed["phases"]["test"]["cer"] < 100, "a network that says nothing would prove nothing"
    assert not list(root.glob(".e*")), "no draft is left"
