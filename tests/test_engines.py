"Engines: slots, bad ends, nothing left behind; suites and lost machines on a cluster; one run on two devices."
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from toys import STEADY, carried_out, toy_corpus, toy_recipe

from semgbook.engines import Ended, Engine, EngineError, Job, LocalEngine, RayEngine, family_of, make_engine, work_on
from semgbook.processes import TrainingError
from semgbook.recipes import RecipeError, override, preset, recipe_from_dict
from semgbook.runs import carry_out, read_json, run_state, start_run
from semgbook.suites import PlainView, job_of, plan_suite, run_suite

TOY = '''
import os, subprocess, sys, time
count, *words = sys.argv[1:]
if "child" in words: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
if "deaf" in words: import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
print("start", time.time(), os.environ["OMP_NUM_THREADS"], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
try:
    for k in range(int(count)): time.sleep(0.1)
except KeyboardInterrupt: print("interrupted"); sys.exit(130)
if "fail" in words: raise ValueError("this recording is broken")
print("stop", time.time())
'''


@pytest.fixture
def toys(tmp_path):
    "A folder with the command `toy`, and a function that makes jobs of it."
    (tmp_path / "toy.py").write_text(TOY)
    return lambda name, *words, **needs: Job(name, words, tmp_path / f"{name}.log", **needs)


def engine_for(tmp_path, jobs=1, gpus=()): return LocalEngine(jobs, gpus, "toy", tmp_path)


def collect(engine, n, at_most_s=60):
    ends, deadline = [], time.monotonic() + at_most_s
    while len(ends) < n and time.monotonic() < deadline: ends += engine.ended(0.5)
    return {end.name: end for end in ends}


def wait_for(condition, at_most_s=30):
    deadline = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def marks(log): return [line.split() for line in Path(log).read_text().splitlines() if line.startswith(("start", "stop"))]


def test_never_more_than_the_slots_and_everyone_has_a_turn(tmp_path, toys):
    engine = engine_for(tmp_path, 2)
    jobs = [toys(f"job{k}", 3 + k % 2) for k in range(5)]
    for job in jobs: engine.submit(job)
    assert engine.slots == 2 and len(engine.running) == 2
    assert collect(engine, 5) == {job.name: Ended(job.name, 0) for job in jobs}
    times = [[float(words[1]) for words in marks(job.log)] for job in jobs]
    assert max(sum(a <= t < b for a, b in times) for t, _ in times) == 2
    assert engine.ended() == [], "an end is told once"


def test_a_gpu_is_shared_only_when_there_is_no_other(tmp_path, toys):
    engine = engine_for(tmp_path, 3, ("0", "1", "2"))
    jobs = [toys("one", 20), toys("two", 20, gpus=2)]
    for job in jobs: engine.submit(job)
    wait_for(lambda: all(job.log.exists() and marks(job.log) for job in jobs))
    seen = [marks(job.log)[0][3].split(",") for job in jobs]
    engine.stop()
    assert len(seen[0]) == 1 and len(seen[1]) == 2 and len({*seen[0], *seen[1]}) == 3
    with pytest.raises(EngineError, match="4 GPUs"): engine.submit(toys("greedy", 1, gpus=4))


def test_cores_become_threads(tmp_path, toys):
    engine, job = engine_for(tmp_path), toys("job", 0, cpus=3)
    engine.submit(job)
    collect(engine, 1)
    assert marks(job.log)[0][2] == "3"


def test_bad_ends_are_told_apart(tmp_path, toys):
    engine = engine_for(tmp_path, 3)
    for job in (toys("fails", 1, "fail"), toys("killed", 300), toys("fine", 2)): engine.submit(job)
    os.kill(engine.running["killed"].process.pid, signal.SIGKILL)
    ends = collect(engine, 3)
    assert ends["fine"] == Ended("fine", 0) and ends["killed"].code == -9 and "SIGKILL" in ends["killed"].note
    assert ends["fails"].code == 1 and ends["fails"].note == "ValueError: this recording is broken"


def test_a_log_is_appended_and_the_note_is_of_this_start(tmp_path, toys):
    engine, job = engine_for(tmp_path), toys("again", 0, "fail")
    for _ in range(2):
        engine.submit(job)
        assert collect(engine, 1)["again"].code == 1
    assert job.log.read_text().count("start") == 2 and job.log.read_text().startswith("--- ")
    silent = Job("again", (), job.log)  # no count: fails before it prints anything of its own
    engine.submit(silent)
    assert "not enough values" in collect(engine, 1)["again"].note


@pytest.mark.parametrize("words, code", [((), 130), (("deaf",), -9)])
def test_stop_leaves_no_process_behind(tmp_path, toys, words, code):
    "Not even a grandchild in a session of its own, nor a job that does not listen."
    engine = engine_for(tmp_path)
    job = toys("job", 300, "child", *words)
    engine.submit(job)
    engine.submit(toys("waiting", 1))
    process = engine.running["job"]
    wait_for(lambda: marks(job.log))
    assert len(process.family()) == 2
    engine.stop()
    assert process.family() == [] and process.process.returncode == code and engine.ended() == []


def test_a_job_hears_an_interrupt_though_its_starter_is_deaf(tmp_path, toys):
    "What Ray starts has the interrupt blocked, and so would a job of it."
    engine, job = engine_for(tmp_path), toys("job", 300)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try: engine.submit(job)
    finally: signal.pthread_sigmask(signal.SIG_SETMASK, before)
    process = engine.running["job"].process
    wait_for(lambda: marks(job.log))
    engine.stop()
    assert process.returncode == 130 and "interrupted" in job.log.read_text()


def test_the_family_of_a_killed_job_is_ended(tmp_path, toys):
    engine, job = engine_for(tmp_path), toys("job", 300, "child")
    engine.submit(job)
    process = engine.running["job"]
    wait_for(lambda: marks(job.log))
    os.kill(process.process.pid, signal.SIGKILL)
    assert collect(engine, 1)["job"].code == -9 and process.family() == []


def test_jobs_end_with_a_killed_driver(tmp_path, toys):
    driver = subprocess.Popen([sys.executable, "-c", "import sys, time; from pathlib import Path; from semgbook.engines import Job, LocalEngine\n"
                               f"e = LocalEngine(1, (), 'toy', {str(tmp_path)!r}); e.submit(Job('job', (300,), Path({str(tmp_path)!r}) / 'job.log'))\n"
                               "print(e.running['job'].mark, flush=True); time.sleep(300)"], stdout=subprocess.PIPE, text=True)
    mark = driver.stdout.readline().strip()
    wait_for(lambda: (tmp_path / "job.log").exists() and marks(tmp_path / "job.log"))
    assert family_of(mark)
    driver.kill()
    driver.wait()
    wait_for(lambda: not family_of(mark), 10)


def test_ended_waits_no_longer_than_asked_and_no_shorter(tmp_path, toys):
    engine = engine_for(tmp_path)
    for submit in (False, True):
        if submit: engine.submit(toys("long", 300))
        before = time.monotonic()
        assert engine.ended(0.3) == [] and 0.3 <= time.monotonic() - before < 3
    engine.stop()


def test_the_verbs_are_what_runs_by_default(tmp_path):
    engine = LocalEngine()
    engine.submit(Job("list", ("runs", "--out", str(tmp_path / "none")), tmp_path / "list.log"))
    engine.submit(Job("unknown", ("run", "e99"), tmp_path / "unknown.log"))
    ends = collect(engine, 2, 120)
    assert ends["list"].code == 0 and ends["unknown"].code == 2 and "unknown experiment" in ends["unknown"].note


@pytest.mark.parametrize("call, words", [
    (lambda: make_engine("lokal"), "did you mean local"), (lambda: make_engine("slurm"), "local, ray"), (lambda: make_engine("local", address="auto"), "--address"),
    (lambda: make_engine("ray", gpus=(0,)), "--gpus"), (lambda: make_engine("local", 0), "at least one"), (lambda: LocalEngine(0), "at least one"),
    (lambda: Job("j", "run e00", "log"), "one text"), (lambda: Job("j", ("run",), "log", cpus=0), "at least one core")])
def test_refusals_say_what_would_work(call, words):
    with pytest.raises(EngineError, match=words): call()


def test_a_name_is_given_once(tmp_path, toys):
    engine = engine_for(tmp_path)
    for name in ("running", "waiting"): engine.submit(toys(name, 300))
    for name in ("running", "waiting"):
        with pytest.raises(EngineError, match=name): engine.submit(toys(name, 1))
    engine.stop()


def test_a_machine_without_the_shared_disk_refuses(tmp_path, toys):
    job = toys("job", 0)
    assert work_on(job, "toy", tmp_path, 0).code == 2 and not job.log.exists()


def test_an_interrupt_while_a_job_is_started_leaves_nobody(tmp_path, toys, monkeypatch):
    "The process is there already, and whoever started it has not yet been told."
    marks_seen, popen = [], subprocess.Popen

    def interrupted(*words, env, **options):
        marks_seen.append(env["SEMGBOOK_JOB"])
        popen(*words, env=env, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr("semgbook.engines.subprocess.Popen", interrupted)
    job, engine = toys("job", 300), engine_for(tmp_path)
    job.log.touch()
    with pytest.raises(KeyboardInterrupt): work_on(job, "toy", tmp_path, 0)
    with pytest.raises(KeyboardInterrupt): engine.submit(job)
    assert len(family_of(marks_seen[1])) == 1, "what is to be ended is there"
    engine.stop()
    assert len(marks_seen) == 2 and not any(map(family_of, marks_seen))


@pytest.mark.parametrize("engine", [LocalEngine, RayEngine])
def test_an_engine_can_do_what_a_suite_asks(engine):
    "The words of the protocol, with its parameters and defaults."
    for name in ("submit", "ended", "stop"):
        asked, given = ([(p.name, p.default) for p in inspect.signature(getattr(kind, name)).parameters.values()] for kind in (Engine, engine))
        assert given == asked, name


def test_ray_that_is_not_there_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"semgbook\[cluster\]"): make_engine("ray")


# --- a cluster ----------------------------------------------------------------------------------

STEPS = '''
import os, sys, time
from pathlib import Path
kept, done = Path(sys.argv[1]), 0
if kept.exists(): done = int(kept.read_text())
print("from", done, flush=True)
while not (kept.parent / "enough").exists(): time.sleep(0.25); done += 1; kept.write_text(str(done))
print("end", flush=True)
'''


TOO_BUSY = "this machine is too busy for Ray: its processes did not start within the 15 s that Ray gives them"


@pytest.fixture(scope="module")
def cluster():
    "A Ray cluster of a head without cores, for all tests of this file."
    pytest.importorskip("ray", reason="the package ray is not installed")
    from ray.cluster_utils import Cluster
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_worker_niceness"): os.environ.setdefault(name, "0")
    made = None
    try:
        try: made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False))
        except Exception as error:
            if "timed out during startup" not in str(error): raise
            pytest.skip(TOO_BUSY)
        yield made
    finally:
        if made: made.shutdown()


def add_machine(cluster, **has):
    "One more machine, of two cores that share a GPU; skips where Ray is too slow to start. Nothing needs the GPU, Ray only counts it."
    try: return cluster.add_node(**{"num_cpus": 2, "num_gpus": 1, **has})
    except Exception as error:
        if "timed out during startup" not in str(error): raise
        pytest.skip(TOO_BUSY)


@pytest.fixture
def one_machine(cluster):
    "The cluster with one machine beside the head, whatever an earlier test has left."
    for more in list(cluster.worker_nodes)[1:]: cluster.remove_node(more, allow_graceful=False)
    if not cluster.worker_nodes: add_machine(cluster)
    yield cluster
    if (ray := sys.modules["ray"]).is_initialized(): ray.shutdown()  # a test that failed has not left the cluster


def only_machine(cluster):
    machine, = cluster.worker_nodes
    return machine


def test_a_lost_machine_costs_a_step_and_not_the_job(one_machine, tmp_path):
    "The machine is lost in the middle of the job; the other one goes on from what was kept, and no process of the first is left."
    (tmp_path / "steps.py").write_text(STEPS)
    first, log, kept = only_machine(one_machine), tmp_path / "job.log", tmp_path / "kept"
    engine = RayEngine(one_machine.address, module="steps", cwd=tmp_path)
    with pytest.raises(EngineError, match="3 cores"): engine.submit(Job("wide", (1,), tmp_path / "wide.log", cpus=3))
    engine.submit(Job("job", (kept,), log))
    wait_for(lambda: kept.exists() and int(kept.read_text() or 0) >= 3, 120)
    add_machine(one_machine)
    one_machine.remove_node(first, allow_graceful=False)
    starts = lambda: [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("from")]
    wait_for(lambda: len(starts()) == 2, 120)
    (tmp_path / "enough").touch()
    ends = collect(engine, 1, 120)
    assert ends == {"job": Ended("job", 0)} and log.read_text().count("end") == 1
    assert len(starts()) == 2 and starts()[0] == 0 and starts()[1] >= 3, "begun once, continued once"
    engine.submit(Job("bad", (tmp_path / "no" / "folder",), tmp_path / "bad.log"))
    assert collect(engine, 1, 120)["bad"].code == 1, "a job that fails by itself is not started again"
    assert (tmp_path / "bad.log").read_text().count("from") == 1
    engine.stop()


def test_both_engines_answer_alike(one_machine, tmp_path, toys):
    "Slots, GPUs, a name given once, an end told once, and a GPU that the job is shown; a cluster that grows has more of both."
    row, = plan_suite(toy_suite(tmp_path, {}), tmp_path / "runs")
    for engine in (LocalEngine(1, (0,), "toy", tmp_path), RayEngine(one_machine.address, module="toy", cwd=tmp_path)):
        kind = type(engine).__name__
        assert isinstance(engine, Engine), kind
        wait_for(lambda: (engine.slots, engine.gpus) == (1, ("0",)))  # noqa: B023 (a cluster takes a moment to notice who left and who came)
        assert job_of(row, engine).gpus == 1, "a recipe that leaves the device open gets a GPU where there is one"
        job = toys(kind, 5, gpus=1)
        engine.submit(job)
        with pytest.raises(EngineError, match="already"): engine.submit(job)
        with pytest.raises(EngineError, match="9 GPUs"): engine.submit(toys("greedy", 1, gpus=9))
        assert collect(engine, 1, 120) == {kind: Ended(kind, 0)} and engine.ended() == [], kind
        assert marks(job.log)[0][3] == "0", kind
        if kind == "RayEngine":
            more = add_machine(one_machine, num_gpus=2)
            wait_for(lambda: engine.slots == 3 and engine.gpus == ("0", "1", "2"))  # noqa: B023
            one_machine.remove_node(more)
        engine.stop()


TINY = {"name": "toy", "data.users": [], "data.window_s": 2.0, "training.epochs": 3, "training.batch_size": 4, "encoder": "norm mlp(features=16) tds:1(channels=4,kernel=8)",
        "augment.alignment_jitter": 10, "augment.rotation": 1, "optimiser.lr": 0.01, "optimiser.warmup": 0.2, "blank_bias": 2.0}


def toy_suite(tmp_path, *changes):
    "A suite with an entry for each set of changes of a tiny recipe; its file."
    corpus, path = toy_corpus(tmp_path / "corpus"), tmp_path / "toy.json"
    path.write_text(json.dumps([["e00", {"corpus": str(corpus), "overrides": json.dumps({**TINY, **more})}] for more in changes]))
    return path


def starts(row): return (row.folder / "log.txt").read_text().count("--- ")


def test_a_suite_on_a_cluster(one_machine, tmp_path):
    "One run goes through and one fails with its traceback; called again, what is done is skipped and what failed is tried once more."
    path, root = toy_suite(tmp_path, {}, {"data.window_s": 1000.0}), tmp_path / "runs"
    for resume, tried in ((False, 1), (False, 1), (True, 2)):
        said = io.StringIO()
        good, bad = run_suite(path, root, resume, RayEngine(one_machine.address), PlainView(said))
        status = read_json(bad.folder / "status.json")
        assert (good.state, bad.state) == ("done", "failed"), said.getvalue()
        assert (starts(good), starts(bad)) == (1, tried), "begun so many times in all"
        assert status["state"] == "failed" and "Traceback" in status["traceback"] and status["error"].strip().splitlines()[-1] == bad.note
        assert f"done        {good.name}" not in said.getvalue() or starts(bad) == 1 and not resume
        assert f"failed      {bad.name}" in said.getvalue() and "1 failed, 1 done" in said.getvalue()
    assert (good.folder / "notebook.ipynb").exists() and (good.folder / "results.json").exists() and not (bad.folder / "results.json").exists()


def test_a_stopped_cluster_leaves_a_run_that_goes_on(one_machine, tmp_path):
    "Stopped in the middle of a run: nobody works on it, every file of it is whole, and it ends like one that was left alone."
    path, root = toy_suite(tmp_path, {"training.epochs": 400}), tmp_path / "runs"  # enough to be stopped in the middle on any machine
    row, = plan_suite(path, root)
    engine = RayEngine(one_machine.address)
    engine.submit(job_of(row, engine))
    wait_for(lambda: read_json(row.folder / "status.json", {}).get("epoch", 0) >= 3, 120)
    worker = read_json(row.folder / "status.json")["pid"]
    engine.stop()
    status, history = read_json(row.folder / "status.json"), pd.read_csv(row.folder / "history.csv")
    assert status["state"] == "interrupted" == row.look().state and 3 <= len(history) < 400
    assert not psutil.pid_exists(worker) and not list(root.glob(".e*")), "neither a kernel nor a draft is left"
    assert {p.name for p in row.folder.iterdir()} <= {"recipe.json", "status.json", "history.csv", "last.ckpt", "model.safetensors", "log.txt"}, "nothing half-written"
    kept = torch.load(row.folder / "last.ckpt", weights_only=True)
    assert len(kept["ledger"]["history"]) - len(history) in (0, 1), "a checkpoint comes before its row"

    row, = run_suite(path, root, True, RayEngine(one_machine.address), PlainView(said := io.StringIO()))
    assert row.state == "done" and starts(row) == 2, said.getvalue()
    after = pd.read_csv(row.folder / "history.csv")
    assert len(after) == 400 and after.iloc[:len(history)].seconds.tolist() == history.seconds.tolist(), "the first epochs are those from before, to their very duration"
    undisturbed = carry_out(start_run("e00", row.runs[0].recipe, tmp_path / "undisturbed"), lambda line: None)
    assert read_json(row.folder / "results.json") == undisturbed and undisturbed["phases"]["test"]["cer"] < 100

# --- one run on several devices -----------------------------------------------------------------

def test_two_processes_train_as_one_does(tmp_path):
    "Same windows in every step, same statistics, same gradients: the same curves, up to rounding."
    toy_corpus(tmp_path / "corpus")
    one, two = (carried_out(toy_recipe(tmp_path / "corpus", training__devices=n, training__loggers=["csv", "tensorboard"], **STEADY), tmp_path / "runs") for n in (1, 2))
    assert one != two and read_json(two / "status.json")["pid"] == os.getpid() and not (two / "last.ckpt").exists()
    for column in ("train_loss", "val_loss", "lr", "step"):
        np.testing.assert_allclose(pd.read_csv(two / "history.csv")[column], pd.read_csv(one / "history.csv")[column], rtol=1e-4)
    a, b = (read_json(f / "results.json")["phases"] for f in (one, two))
    assert abs(a["test"]["cer"] - b["test"]["cer"]) <= 2 and a["train"]["n_reference"] == b["train"]["n_reference"], "evaluated by one process, on whole batches"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(two / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("val_loss")] == [0, 1, 2]
    np.testing.assert_allclose([e.value for e in events.Scalars("val_loss")], pd.read_csv(two / "history.csv").val_loss, rtol=1e-5)


def test_two_processes_killed_and_resumed_end_as_if_undisturbed(tmp_path):
    "The process group of the one that was started is killed; those that it started end by themselves, and the next call goes on from their checkpoint."
    toy_corpus(tmp_path / "corpus")
    recipe = toy_recipe(tmp_path / "corpus", training__devices=2, training__device="cpu", training__epochs=12, optimiser__lr=0.01, optimiser__warmup=0.2, blank_bias=2.0)
    run, undisturbed = start_run("e99", recipe, tmp_path / "runs"), tmp_path / "undisturbed"
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from semgbook.recipes import recipe_from_dict; from semgbook.runs import carry_out, read_json, start_run\n"
               "folder = Path(sys.argv[1]); carry_out(start_run('e99', recipe_from_dict(read_json(folder / 'recipe.json')), folder.parent), print)", str(run.folder)]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: (run.folder / "last.ckpt").exists() or driver.poll() is not None, 180)
    ranks = psutil.Process(driver.pid).children()
    assert len(ranks) == 2
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not psutil.wait_procs(ranks, timeout=10)[1], "no process trains for nobody"
    kept = torch.load(run.folder / "last.ckpt", weights_only=True)["ledger"]["history"]
    assert run_state(run.folder) == "interrupted" and 1 <= len(kept) < 12

    lines = []
    results, undisturbed = carry_out(run, lines.append), carried_out(recipe, undisturbed)
    told, expected = pd.read_csv(run.folder / "history.csv"), pd.read_csv(undisturbed / "history.csv")
    assert told.seconds[:len(kept)].tolist() == [row["seconds"] for row in kept], "continued, not begun again"
    pd.testing.assert_frame_equal(told.drop(columns="seconds"), expected.drop(columns="seconds"), check_exact=True)
    assert results == read_json(undisturbed / "results.json") and results["phases"]["test"]["cer"] < 100 and not (run.folder / "last.ckpt").exists()


def test_a_failing_process_ends_the_run_with_its_reason(tmp_path):
    "What the processes said is in the message and in status.json, and none of them is left waiting for the others."
    recipe = toy_recipe(toy_corpus(tmp_path / "corpus"), training__devices=2, **STEADY)
    run = start_run("e99", recipe, tmp_path / "runs")
    (run.folder / "recipe.json").write_text(json.dumps(override(recipe, {"data.corpus": "nowhere"}).to_dict()))
    with pytest.raises(TrainingError, match="nowhere"): carry_out(run, print)
    assert run.state == "failed" and "nowhere" in read_json(run.folder / "status.json")["error"]


def test_several_machines_are_not_started_from_one(tmp_path):
    toy_corpus(tmp_path / "corpus")
    run = start_run("e99", toy_recipe(tmp_path / "corpus", training__nodes=2, **STEADY), tmp_path / "runs")
    with pytest.raises(TrainingError, match="srun semgbook train"): carry_out(run, print)


@pytest.mark.parametrize("changes, words", [({"training.devices": 3}, "batch_size = 8 does not divide among 3"), ({"training.loggers": ["csv", "tensorbord"]}, "tensorbord"), ({"training.loggers": []}, "keep it"), ({"training.devices": 0}, "above 0")])
def test_recipes_that_cannot_be_spread_are_refused(changes, words):
    with pytest.raises(RecipeError, match=words): override(preset("tds_embedded"), changes)


def test_old_hashes_stay():
    base = preset("tds_embedded")
    values = base.to_dict()
    for name in ("devices", "nodes", "loggers"): del values["training"][name]
    assert stable_hash_of_old(values) == base.hash() != override(base, {"training.devices": 2}).hash()


def stable_hash_of_old(values):
    "The hash of a recipe as it was before it could be spread over devices: read it back, and hash it."
    return recipe_from_dict(values).hash()
