"What a training says: one line, two bars, the same rows everywhere, and nothing that leaves the machine."
import io
import json
import sys
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from toys import STEADY, carried_out, toy_corpus, toy_recipe

from semgbook.progress import LOGS, LiveLine, LoggerError, Progress, check_loggers, clock, epoch_line, say_source, seconds_left, training_line
from semgbook.runs import carry_out, read_json, start_run

def row_of(epoch, **changes):
    "A row of history, as far as this module reads it."
    return {"epoch": epoch, "step": 4 * (epoch + 1), "train_loss": 2.0 / (epoch + 1), "val_loss": 2.5 / (epoch + 1), "val_cer": 90.0 - 10 * epoch, "val_blank_fraction": 0.8, "seconds": 1.5} | changes


def ledger_of(*rows, batches=4):
    "What a training knows after these rows."
    return SimpleNamespace(history=list(rows), best=min(rows, key=lambda r: r["val_cer"]) if rows else None, loss_sum=6.0, n_batches=3, data=SimpleNamespace(train=range(batches)))


def run_in(folder, *loggers): return SimpleNamespace(folder=folder, run_id="toy-s0", recipe=SimpleNamespace(training=SimpleNamespace(loggers=("csv", *loggers), epochs=3)))


def progress_in(folder, told, *loggers, **options):
    "Progress of a run of three epochs, whose facts go into a list."
    return Progress(run_in(folder, *loggers), lambda recipe, data: recipe.training.epochs, lambda **facts: told.append(facts), **options)


# --- words --------------------------------------------------------------------------------------

@pytest.mark.parametrize("seconds, words", [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3599.6, "1:00:00"), (3723, "1:02:03"), (360000, "100:00:00")])
def test_a_duration_is_rounded_before_it_is_cut(seconds, words): assert clock(seconds) == words


def test_an_epoch_is_counted_from_one_and_may_have_no_keys():
    assert epoch_line(row_of(0), 3).startswith("epoch 1/3 ") and "val CER  90.00 %" in epoch_line(row_of(0), 3)
    assert "no keys" in epoch_line(row_of(0, val_cer=None), 3) and "%" not in epoch_line(row_of(0, val_cer=None), 3).split("blank")[0]


def test_the_bars_move_with_batches_and_what_is_unknown_is_left_out():
    full = lambda **facts: training_line({"epochs": 2, "steps": 8, **facts}).split("epoch")[0].count("█")
    assert [full(epoch=e, step=s) for e, s in ((0, 0), (0, 4), (1, 0), (1, 4), (2, 0))] == [0, 4, 8, 12, 16]
    assert full(epoch=3, step=0) == 16, "a bar does not grow over its end"
    bare = training_line({"epoch": 0, "epochs": 2})
    assert not any(word in bare for word in ("loss", "CER", "left"))
    assert "best val CER 0.00 %" in training_line({"epoch": 1, "epochs": 2, "val_cer": 0.0}), "nought is known"


def test_time_left_is_that_of_this_session():
    began = (100.0, 0.9)
    assert seconds_left(0.9, 100.0, began) is None and seconds_left(0.95, 160.0, began) == 60 and seconds_left(1.0, 220.0, began) == 0


# --- one line -----------------------------------------------------------------------------------

@pytest.mark.parametrize("screen", [True, False])
def test_a_terminal_rewrites_its_line_and_a_file_keeps_epochs_only(monkeypatch, screen):
    paper = io.StringIO()
    paper.isatty = lambda: screen
    monkeypatch.setattr(sys, "stdout", paper)
    monkeypatch.setenv("COLUMNS", "40")
    line = LiveLine()
    line.show("moment " * 20, passing=True)
    line.show("epoch")
    written = paper.getvalue()
    if screen: assert "\n" not in written and [len(part) for part in written.split("\r")] == [39, 39, 0]
    else: assert written == "epoch\n"


def test_a_notebook_keeps_one_output_however_often_it_is_updated():
    "In a kernel: bars for a browser, one line of text for whoever reads the file, and the last state of both."
    code = ("from semgbook.progress import LiveLine\nline = LiveLine()\n"
            "for k in range(200): line.show(f'epoch {k}', f'<b>{k}</b>', passing=True)")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    output, = book.cells[0].outputs
    assert output.data == {"text/plain": "epoch 199", "text/html": "<b>199</b>"}


# --- one object ---------------------------------------------------------------------------------

def test_nothing_is_said_between_two_looks_but_every_epoch_is(tmp_path):
    told, lines = [], []
    progress = progress_in(tmp_path, told, say=lines.append, every_s=3600.0)
    for done in range(1, 5): progress.step(ledger_of(), done, 4)
    for k in range(3): progress.epoch(ledger_of(*map(row_of, range(k + 1))), True)
    assert [(f["epoch"], f["step"]) for f in told] == [(0, 1), (1, 0), (2, 0), (3, 0)] and [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert told[0]["loss"] == 2.0 and told[0]["val_cer"] is None and told[0]["left_s"] is None and told[-1]["val_cer"] == 70 and told[-1]["left_s"] == 0
    assert pd.read_csv(tmp_path / "history.csv").to_dict("records") == [row_of(k) for k in range(3)]


def test_a_line_that_was_said_is_in_the_files_already(tmp_path):
    told, seen = [], []
    progress = progress_in(tmp_path, told, say=lambda line: seen.append((len(pd.read_csv(tmp_path / "history.csv")), told[-1]["epoch"])))
    for k in range(3): progress.epoch(ledger_of(*map(row_of, range(k + 1))), True)
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_where_the_weights_come_from_is_said_once_and_first(tmp_path):
    (tmp_path / "carried.json").write_text('{"summary": "half of the weights"}')
    lines = []
    progress = progress_in(tmp_path, [], say=lines.append, every_s=0.0)
    for done in (1, 2): progress.step(ledger_of(), done, 4)
    assert lines == ["half of the weights"]
    (tmp_path / "carried.json").unlink()
    say_source(run_in(tmp_path), lines.append)
    assert len(lines) == 1


def test_another_process_is_followed_once_it_counts(tmp_path):
    shown = []
    progress = progress_in(tmp_path, [], every_s=3600.0)
    progress.live = SimpleNamespace(show=lambda text, html, passing: shown.append((text, passing)))
    status = {"state": "running", "epoch": 1, "epochs": 3, "step": 2, "steps": 4}
    for s in ({}, {"state": "running", "epoch": 0, "epochs": 3}, status, status): progress.follow(s)
    assert shown == [(training_line(status), True)]


def test_a_logger_gets_the_rows_from_where_it_begins(tmp_path, monkeypatch):
    class Listener:
        def __init__(self, run, epoch): self.first, self.rows, self.closed = epoch, [], False
        def add(self, row): self.rows.append(row)
        def close(self): self.closed = True

    monkeypatch.setitem(LOGS, "json", Listener)
    progress = progress_in(tmp_path, [], "json", say=lambda line: None)
    progress.close()
    for k in (1, 2): progress.epoch(ledger_of(*map(row_of, range(k + 1))), True)
    progress.close()
    log, = progress.logs
    assert log.first == 1 and log.rows == [row_of(1), row_of(2)] and log.closed


def test_tensorboard_has_the_rows_and_a_gap_where_there_is_no_number(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the package tensorboard is not installed")
    run = run_in(tmp_path)
    for first in (0, 2):  # killed after its fourth row and resumed with the third
        log = LOGS["tensorboard"](run, first)
        for k in range(first, 4): log.add(row_of(k, val_cer=None if k == 1 else 10.0 * k + first))
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("val_cer")] == [(0, 0.0), (2, 22.0), (3, 32.0)] and "epoch" not in events.Tags()["scalars"]


def test_csv_needs_no_package():
    check_loggers(run_in(None).recipe)


# --- in a run -----------------------------------------------------------------------------------

def wandb_rows(path):
    "The rows in an offline file: 7 bytes of header, then records as in a LevelDB log, parts of at most a block of 32 KiB, each a message of wandb's own."
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, parts, rows = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at < len(data):
        if (room := 32768 - at % 32768) < 7: at += room; continue
        size, kind = int.from_bytes(data[at + 4:at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7:at + 7 + size], at + 7 + size
        if kind not in (1, 4): continue  # neither whole nor the last part
        record, parts = Record.FromString(parts), b""
        if record.HasField("history"): rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    return rows


def test_wandb_offline_keeps_the_rows(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = carried_out(toy_recipe(toy_corpus(tmp_path / "corpus"), training__loggers=["csv", "wandb"], **STEADY), tmp_path / "runs")
    kept, = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    rows = wandb_rows(kept)
    history = pd.read_csv(folder / "history.csv")
    assert [row["_step"] for row in rows] == history.epoch.tolist() == [0, 1, 2]
    for column in history: assert [row.get(column) for row in rows] == [None if pd.isna(v) else pytest.approx(v) for v in history[column]], column


def test_a_logger_without_its_package_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("semgbook.progress.find_spec", lambda name: None)
    run = start_run("e99", toy_recipe(toy_corpus(tmp_path / "corpus"), training__loggers=["csv", "wandb"]), tmp_path / "runs")
    with pytest.raises(LoggerError, match=r"semgbook\[loggers\]"): carry_out(run, print)
    assert not (run.folder / "history.csv").exists()


def test_status_tells_steps_and_time_left(tmp_path):
    run, seen = start_run("e99", toy_recipe(toy_corpus(tmp_path / "corpus"), **STEADY), tmp_path / "runs"), []
    carry_out(run, lambda line: seen.append((line, read_json(run.folder / "status.json"))))
    assert [s["epoch"] for _, s in seen] == [1, 2, 3] and all(line.startswith(f"epoch {k + 1}/3") for k, (line, _) in enumerate(seen))
    assert seen[0][1]["left_s"] > 0 and seen[2][1]["left_s"] == 0 and seen[0][1]["steps"] > 1
    assert "left" in training_line(seen[0][1]) and training_line(seen[2][1]).count("█") == 16
