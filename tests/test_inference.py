"Whole sessions in chunks: equal where equality is claimed, as trained where it is not."
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import toy_corpus, toy_recipe, two_users

from semgbook.charset import get_charset
from semgbook.domain import fresh_probe, pool_features
from semgbook.inference import (ChunkPlan, StretchResult, cer_words, chunk_emissions, decode_stretch, keep_example, language_table, median_window,
                                minutes_of, phase_entry, plan_bounded, plan_chunks, plan_windows, probe_user, read_windows, readers_of, score_recalibrated,
                                score_sessions, sweep_readers, texts_table, window_results, without_key)
from semgbook.language_files import write_arpa
from semgbook.language_model import embedded_language_model
from semgbook.metrics import ErrorCounts, count_errors
from semgbook.recipes import override
from semgbook.session import list_sessions, open_session, read_signal, write_session
from semgbook.splits import Part
from semgbook.store import SignalStore
from semgbook.training import build_model, frame_field, load_data, sample_field, sample_stride, score_windows

BOUNDED = ["norm mlp(features=16) tds:1(channels=4,kernel=8)", "norm mlp(features=16) tds:3(channels=4,kernel=5)"]
QWERTY = get_charset("qwerty")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return toy_corpus(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def session(corpus): return open_session(list_sessions(corpus)[0])


@pytest.mark.parametrize("n, field, stride, chunk", [(30, 10, 2, 4), (10, 10, 2, 4), (9, 10, 2, 4), (1000, 64, 16, 7), (1001, 64, 16, 1), (4321, 2048, 128, 3)])
def test_bounded_plan_covers_every_emission_once(n, field, stride, chunk):
    plan, total = plan_bounded(n, field, stride, chunk), max((n - field) // stride + 1, 0)
    emissions = [a // stride + i for a, b in zip(plan.starts, plan.stops) for i in range((b - a - field) // stride + 1)]
    assert emissions == list(range(total)) and (len(plan) == 0 or plan.stops.max() <= n)


@pytest.mark.parametrize("n", [1, 799, 800, 801, 2500])
def test_windows_tile_the_stretch(n):
    plan = plan_windows(n, 800, 180, 20)
    assert plan.starts[0] == 0 and plan.stops[-1] == n and len(plan) == -(-n // 800)


@pytest.mark.parametrize("encoder", BOUNDED)
@pytest.mark.parametrize("chunk_s", [0.3, 5.0])
def test_chunks_equal_the_full_pass(corpus, session, encoder, chunk_s):
    recipe = toy_recipe(corpus, encoder=encoder)
    torch.manual_seed(0)
    model, store = build_model(recipe, 2, 16).eval(), SignalStore([session])
    full = torch.cat(list(chunk_emissions(model, store, 0, 0, plan_bounded(session.n_samples, sample_field(model), sample_stride(model), 10**9))))
    parts = torch.cat(list(chunk_emissions(model, store, 0, 0, plan_chunks(model, session.n_samples, recipe, session.rate_hz, chunk_s))))
    assert full.shape == parts.shape and float((full - parts).abs().max()) < 1e-4


def test_a_stretch_is_read_from_where_it_begins(corpus, session):
    recipe = toy_recipe(corpus)
    torch.manual_seed(0)
    model, store = build_model(recipe, 2, 16).eval(), SignalStore([session])
    start = sample_stride(model) * 100
    part = Part(session, start, session.n_samples)
    full = torch.cat(list(chunk_emissions(model, store, 0, 0, plan_chunks(model, session.n_samples, recipe, session.rate_hz))))
    tail = torch.cat(list(chunk_emissions(model, store, 0, start, plan_chunks(model, part.stop - part.start, recipe, session.rate_hz))))
    assert float((full[100:] - tail).abs().max()) < 1e-4


def test_unbounded_chunks_are_the_windows_of_validation(corpus):
    "A recurrent model reads a session exactly as its validation windows were read, plus the tail."
    recipe = toy_recipe(corpus, encoder="norm mlp(features=16) bilstm(hidden=8)", blank_bias=-2.0)
    torch.manual_seed(0)
    model, data = build_model(recipe, 2, 16).eval(), load_data(recipe)
    part = data.split.val[0]
    windowed = "".join(score_windows(model, data.val, data.charset, torch.device("cpu")).predictions)
    whole = decode_stretch(model, SignalStore([part.session]), 0, part, recipe, readers_of(recipe, data.charset))
    assert len(windowed) > 10 and whole["greedy"].startswith(windowed)


@pytest.mark.parametrize("encoder", ["transformer(heads=4,feedforward=16)", "bilstm(hidden=8)"])
def test_what_lies_far_away_reaches_a_full_pass_and_no_chunk(corpus, session, tmp_path, encoder):
    "The second half of a session made louder: a full pass reads its beginning differently, windows as trained do not."
    recipe = toy_recipe(corpus, encoder=f"norm mlp(features=16) {encoder}", data__left_context_s=0.3)
    torch.manual_seed(0)
    model, half = build_model(recipe, 2, 16).eval(), session.n_samples // 2
    signal = np.array(read_signal(session))
    signal[half:] *= 30
    times = session.first_time + np.arange(len(signal)) / session.rate_hz
    loud = open_session(write_session(tmp_path / "loud.hdf5", signal, times, list(session.keys), session.press_times, session.press_times + 0.1,
                                      name="loud", user="toy", rate_hz=session.rate_hz))
    as_trained, one_pass = (plan_chunks(model, session.n_samples, override(recipe, {"data.window_s": s}), session.rate_hz) for s in (2.0, 1000.0))
    assert len(one_pass) == 1 < len(as_trained)
    n_chunks, n_frames, apart = int((as_trained.stops <= half).sum()), (half - frame_field(model)) // sample_stride(model), {}
    for name, plan, chunks, frames in (("chunks", as_trained, n_chunks, None), ("full", one_pass, 1, n_frames)):
        quiet, noisy = (torch.cat(list(chunk_emissions(model, SignalStore([s]), 0, 0, plan, 1))[:chunks])[:frames] for s in (session, loud))
        apart[name] = float((quiet - noisy).abs().max())
    assert n_chunks >= 3 and n_frames > 100 and apart["chunks"] == 0 and apart["full"] > 1e-3


def test_references_are_everything_typed(corpus, session):
    recipe = toy_recipe(corpus)
    result = score_sessions(build_model(recipe, 2, 16), (Part(session, 0, session.n_samples),), QWERTY, recipe)[0]
    assert result.reference == "".join(session.keys) and result.counts.n_predicted == len(result.prediction)
    half = score_sessions(build_model(recipe, 2, 16), (Part(session, 0, session.n_samples // 2),), QWERTY, recipe)[0]
    assert result.reference.startswith(half.reference) and 0 < len(half.reference) < len(result.reference)


def test_scoring_leaves_the_mode_as_it_was(corpus, session):
    recipe = toy_recipe(corpus)
    model = build_model(recipe, 2, 16).train()
    score_sessions(model, (Part(session, 0, session.n_samples),), QWERTY, recipe)
    assert model.training


def test_recalibration_reads_a_louder_device_as_before(corpus, session, tmp_path):
    "With its own statistics a recording at ten times the gain is read as it was; and a minute at a time is as good as all at once."
    signal, times = read_signal(session, 0, session.n_samples), 1e9 + np.arange(session.n_samples) / session.rate_hz
    louder = open_session(write_session(tmp_path / "louder.hdf5", 10 * signal, times, [], [], [], name="louder", user="nobody", rate_hz=session.rate_hz))
    recipe = toy_recipe(corpus, blank_bias=0.0)
    torch.manual_seed(0)
    model = build_model(recipe, 2, session.n_channels).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parts = tuple(Part(s, 0, s.n_samples) for s in (session, louder))
    (quiet, loud), (own_quiet, own_loud) = ([r.prediction for r in read(model, parts, QWERTY, recipe)] for read in (score_sessions, score_recalibrated))
    assert quiet != loud and len(own_quiet) > 20 and count_errors(own_quiet, own_loud).cer < 5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and not model.training, "the model itself stays as it was"
    pieces = list(minutes_of(parts[0], 0.7))
    assert np.array_equal(torch.cat(pieces, 1)[0].numpy(), signal) and len(pieces) == -(-session.n_samples // round(0.7 * session.rate_hz))


def test_text_does_not_depend_on_the_chunk_length(corpus, session):
    recipe = toy_recipe(corpus, blank_bias=-3.0)
    torch.manual_seed(0)
    model, part = build_model(recipe, 2, 16).eval(), Part(session, 0, session.n_samples)
    recipe = override(recipe, {"decoding.beam": 6, "decoding.lm": "embedded"})
    texts = [decode_stretch(model, SignalStore([session]), 0, part, recipe, readers_of(recipe, QWERTY), s) for s in (0.2, 1.0, 100.0)]
    assert set(texts[0]) == {"greedy", "beam", "lm"} and texts[0] == texts[1] == texts[2] and len(texts[0]["greedy"]) > 20


@pytest.mark.parametrize("joined, text", [(True, "a"), (False, "aa")])
def test_a_key_held_over_a_border(corpus, session, monkeypatch, joined, text):
    "One key in joined emissions; in separate windows each has typed it."
    held = torch.full((3, QWERTY.n_classes), -9.0)
    held[:, QWERTY.index("a")] = 0
    monkeypatch.setattr("semgbook.inference.plan_chunks", lambda *a: ChunkPlan(np.zeros(2, int), np.ones(2, int), joined))
    monkeypatch.setattr("semgbook.inference.chunk_emissions", lambda *a: iter([held, held]))
    recipe = toy_recipe(corpus)
    recipe = override(recipe, {"decoding.beam": 6})
    read = decode_stretch(build_model(recipe, 2, 16), SignalStore([session]), 0, Part(session, 0, session.n_samples), recipe, readers_of(recipe, QWERTY))
    assert read == {"greedy": text, "beam": text}


def test_every_reader_sees_what_it_would_see_alone(corpus, session):
    "One pass of the model feeds all readers; none of them changes what another one reads."
    recipe = override(toy_recipe(corpus, blank_bias=-3.0), {"decoding.beam": 6, "decoding.lm": "embedded"})
    torch.manual_seed(0)
    model, part, readers = build_model(recipe, 2, 16), Part(session, 0, session.n_samples), readers_of(recipe, QWERTY)
    together = {r.decoder: r for r in score_sessions(model, (part,), QWERTY, recipe, readers)}
    for name, make in readers.items(): assert score_sessions(model, (part,), QWERTY, recipe, {name: make})[0] == together[name]
    assert score_sessions(model, (part,), QWERTY, recipe)[0] == together["greedy"]


def test_a_sweep_reads_each_pair_with_its_own_weights(corpus):
    recipe = override(toy_recipe(corpus, blank_bias=-3.0), {"decoding.beam": 6, "decoding.lm": "embedded"})
    torch.manual_seed(0)
    model, windows = build_model(recipe, 2, 16).eval(), load_data(recipe).val.window_set
    swept = read_windows(model, windows, sweep_readers(recipe, QWERTY, (0.0, 2.0), (2.0,)))
    assert swept[2.0, 2.0] == read_windows(model, windows, {"lm": readers_of(recipe, QWERTY)["lm"]}, batch_size=1)["lm"]
    assert swept[2.0, 2.0] != swept[0.0, 2.0] and all(len(texts) == len(windows) for texts in swept.values())
    assert read_windows(model, windows, readers_of(recipe, QWERTY), np.array([1]))["lm"] == swept[2.0, 2.0][1:2]


def test_language_models_by_name_or_file(tmp_path):
    "An ARPA file, zipped or not, is read as ARPA; what is not there is refused by name."
    words = embedded_language_model(3)
    table = language_table(write_arpa(words, tmp_path / "m.arpa"), QWERTY)
    assert table.symbols == words.table().symbols and language_table("embedded", QWERTY).n == 6
    with pytest.raises((ValueError, OSError), match="nowhere"): language_table(tmp_path / "nowhere.arpa", QWERTY)


@pytest.mark.parametrize("changes", [dict(data__rate_factor=2, front_end__n_fft=32, front_end__hop=8), dict(data__rate_factor=3, data__rate_method="frames"),
                                     dict(data__keep_electrodes=[0, 5, 10]), dict(data__keep_electrodes=[0, 5], data__after_rotation=True), dict(data__rate_factor=3, data__rate_method="hold")])
def test_chunks_equal_the_full_pass_whatever_is_taken_away(corpus, session, changes):
    "Decimation, dropped frames, held samples and fewer electrodes change what an emission sees; the plan of chunks knows."
    recipe = toy_recipe(corpus, **changes)
    torch.manual_seed(0)
    model, store = build_model(recipe, 2, 16).eval(), SignalStore([session])
    full = torch.cat(list(chunk_emissions(model, store, 0, 0, plan_bounded(session.n_samples, sample_field(model), sample_stride(model), 10**9))))
    parts = torch.cat(list(chunk_emissions(model, store, 0, 0, plan_chunks(model, session.n_samples, recipe, session.rate_hz, 0.7))))
    assert len(full) == model.out_lengths(session.n_samples) > 20 and full.shape == parts.shape and float((full - parts).abs().max()) < 1e-4


# --- everything that is read of a model ----------------------------------------------------------

def test_windows_keep_their_session_and_user(tmp_path):
    "Results of windows are in the order of the windows, each with the session that it was cut from."
    toy_corpus(tmp_path / "corpus", n_sessions=6, users=("ann", "bob"))
    recipe = toy_recipe(tmp_path / "corpus", data__split_options={"val": 1, "test": 1})
    torch.manual_seed(0)
    model, data = build_model(recipe, 2, 16).eval(), load_data(recipe)
    windows, score = data.val.window_set, score_windows(model, data.val, data.charset, torch.device("cpu"))
    rows = window_results(score, windows)
    assert [(r.session, r.user) for r in rows] == [(p.session.name, p.session.user) for p in data.split.val for _ in range(len(rows) // 2)] and {r.user for r in rows} == {"ann", "bob"}
    assert [r.reference for r in rows] == [windows.index.text(i) for i in range(len(windows))] and sum((r.counts for r in rows), ErrorCounts()) == score.counts
    other = window_results(score, windows, tuple(r.reference for r in rows), "oracle")
    assert sum(r.counts.cer or 0 for r in other) == 0 and {r.decoder for r in other} == {"oracle"}
    table = texts_table({"val": rows, "val_oracle": other})
    assert table.phase.value_counts().to_dict() == {"val": len(rows), "val_oracle": len(rows)} and table.reference.tolist() == 2 * [r.reference for r in rows]
    with pytest.raises(ValueError): window_results(score, windows, ("one",))


def test_the_kept_stretch_is_the_median_window(corpus, tmp_path):
    "Its emissions are the model's, its presses those typed in it; windows without a key do not count."
    recipe = toy_recipe(corpus, blank_bias=-1.0)
    torch.manual_seed(0)
    model, data = build_model(recipe, 2, 16).eval(), load_data(recipe)
    score = score_windows(model, data.val, data.charset, torch.device("cpu"))
    index = median_window(score)
    rates = sorted(b.cer for b in score.blocks if b.n_reference)
    assert score.blocks[index].cer == rates[len(rates) // 2] and median_window(replace(score, blocks=())) == 0
    last = len(score.blocks) - 1
    for chosen, told in ((index, score), (last, replace(score, blocks=(*[ErrorCounts()] * last, score.blocks[last])))):
        kept, batch = np.load(keep_example(recipe, model, data, told, tmp_path / "example.npz")), data.val.window_set.batch(np.array([chosen]))
        with torch.no_grad(): emissions = model(batch.signal, batch.signal_lengths)
        np.testing.assert_allclose(kept["log_probs"].astype(float), emissions.log_probs[0].numpy(), rtol=2e-3, atol=2e-3)
        assert (str(kept["reference"]), str(kept["prediction"])) == (score.references[chosen], score.predictions[chosen])
        seconds = batch.signal_lengths[0].item() / 500
        assert len(kept["press_times"]) == len(str(kept["reference"])) > 0 and 0 <= kept["press_times"].min() <= kept["press_times"].max() <= seconds
        assert (np.diff(kept["frame_times"]) > 0).all() and kept["frame_times"][-1] <= seconds


def test_micro_weighs_characters_and_macro_people():
    rows = [StretchResult(name, name, typed, read, count_errors(typed, read)) for name, typed, read in (("ann", "j" * 90, "j" * 90), ("bob", "j" * 10, "k" * 10))]
    entry = phase_entry(rows, 0.5)
    assert (entry["cer"], entry["macro"], entry["macro_std"], entry["loss"]) == (10.0, 50.0, 50.0, 0.5) and entry["low"] <= 10 <= entry["high"]
    assert phase_entry([])["cer"] is None and [r.reference for r in without_key(rows, "j")] == ["", ""]


def test_a_cer_is_said_with_its_interval_or_with_why_it_has_none():
    said = lambda typed, read: cer_words(phase_entry([StretchResult("s", "u", typed, read, count_errors(typed, read))]))
    assert said("rjr", "rj") == "CER 33.33 % (too little text for an interval)"
    assert said("", "j") == "no CER (nothing was typed)"
    assert re.fullmatch(r"CER 25\.00 % \[\d+\.\d\d, \d+\.\d\d\]", said("rjrk" * 100, "rjr" * 100))


def test_the_probe_sees_what_the_model_would(tmp_path):
    "Its rows are pooled features of plain windows; few of them are spread over all users."
    recipe = two_users(tmp_path / "corpus")
    data = load_data(recipe)
    torch.manual_seed(0)
    model = build_model(recipe, 2, 16).eval()
    windows = data.train.window_set
    batch = windows.batch(np.arange(len(windows)), draws=0)
    with torch.no_grad(): rows = pool_features(*model.encode(batch.signal, batch.signal_lengths))
    expected, found = fresh_probe(rows, windows.owners()), probe_user(model, data)
    assert (found["n"], found["n_windows"]) == (expected.n, len(windows)) and found["accuracy"] == pytest.approx(expected.accuracy, abs=0.05)
    few = probe_user(model, data, max_windows=len(windows) // 2)
    assert few["n_windows"] == len(windows) // 2 and few["n_users"] == 2
