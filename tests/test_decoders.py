"Beam search against golden texts, a plain search, and itself in pieces; the registry of decoders."
import dataclasses
import importlib.util
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from toys import check, decoder_cases, one

from semgbook.charset import FINGERS, QWERTY
from semgbook.ctc import Emissions
from semgbook.decoders import (DECODERS, NODE, BeamDecoder, BeamSettings, arc_score, beam_decode, get_decoder, key_term, make_scorer, make_stream, new_beam, node_of,
                               read_frames, read_text, table_score)
from semgbook.greedy import Decoded, DecodeError
from semgbook.language_files import read_arpa


@pytest.fixture(scope="module")
def golden(shared): return decoder_cases(shared)


def test_registry():
    "Every decoder keeps the contract on a batch with an empty example."
    log_probs = torch.randn(3, 30, FINGERS.n_classes).log_softmax(-1)
    for name in DECODERS:
        decoded = get_decoder(name)(Emissions(log_probs, torch.tensor([30, 0, 7])), FINGERS)
        assert all(isinstance(d, Decoded) for d in decoded) and decoded[1].text == "" and (decoded[2].frames < 7).all()
    with pytest.raises(DecodeError, match="there are: greedy"): get_decoder("beem")


@pytest.fixture(scope="module")
def bench(root):
    "benchmarks/beam.py: the plain search, and a model counted from made-up words."
    spec = importlib.util.spec_from_file_location("beam_benchmark", root / "benchmarks" / "beam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(bench):
    "A table and the same model in dictionaries, of order 1 to 4."
    out = {}
    for n in (1, 2, 3, 4):
        model = bench.count_ngrams(bench.make_words(300), n)
        out[n] = bench.make_table(*model, n), bench.PlainModel(*model, n)
    return out


@pytest.fixture(scope="module")
def golden_lm(shared):
    return read_arpa(shared("golden/lm.arpa")).table()


def searched(log_probs, settings=None, lm=None, charset=QWERTY, cuts=()):
    decoder = BeamDecoder(charset, settings, lm)
    for piece in torch.tensor_split(log_probs, list(cuts)): decoder.push(piece)
    return decoder


def golden_settings(case):
    return BeamSettings(case["beam_size"], case["top_classes"], case["lm_weight"], case["insertion_bonus"])


def test_golden_beam(golden, golden_lm):
    "Texts, labels and onsets exactly, of the five best; scores closely; before and after the end of the last word; cut and whole."
    cases, emissions = golden
    assert len(cases["beam"]) > 90
    for case in cases["beam"]:
        log_probs, lm, close = emissions(case["emissions"]), golden_lm if case["lm"] else None, 1e-4 if case["lm"] else 1e-9
        decoder = searched(log_probs, golden_settings(case), lm)
        check(decoder.best(), case)
        assert decoder.best().score == pytest.approx(case["score"], abs=close)
        entry = decoder.beam.entries[0]
        assert (entry["blank"], entry["key"]) == pytest.approx((float(case["p_blank"]), float(case["p_nonblank"])), abs=close)
        for decoded, expected in zip(decoder.n_best(5), case["n_best"], strict=True):
            assert (decoded.text, decoded.frames.tolist()) == (expected["text"], expected["timestamps"])
            assert decoded.score == pytest.approx(expected["score"], abs=close)
        for cut in case.get("same_when_cut_at", ()): check(searched(log_probs, golden_settings(case), lm, cuts=[cut]).best(), case)
        if "finish" in case:
            decoded, expected = decoder.finish(), case["finish"]
            assert (decoded.text, decoded.frames.tolist()) == (expected["text"], expected["timestamps"])
            assert decoded.score == pytest.approx(expected["score"], abs=close)


def test_golden_beam_batch(golden, golden_lm):
    cases, emissions = golden
    batch = cases["batch"]
    padded = torch.nn.utils.rnn.pad_sequence([emissions(i) for i in batch["items"]], batch_first=True, padding_value=float("nan"))
    for decoded, expected in zip(beam_decode(Emissions(padded, torch.tensor(batch["lengths"])), "qwerty", lm=golden_lm), batch["beam_lm_2_2"], strict=True):
        check(decoded, expected)


def test_golden_scores_of_texts(shared, golden_lm):
    "The term of every key, one by one, and whether a word is open at the end."
    scorer = make_scorer(QWERTY, BeamSettings(lm_weight=1.0, insertion_bonus=0.0), golden_lm)
    for case in json.loads(shared("golden/lm_scores.json").read_text())["sequences"]:
        terms, node, nodes = walk(case["labels"], scorer)
        assert terms == pytest.approx(case["step_log10"], abs=2e-5)
        top = nodes[nodes[node]["top"]]
        inside = bool(top["label"] >= 0 and scorer.symbols[top["label"]] >= 0)
        assert inside != case["at_word_start"]
        if inside: assert arc_score(scorer.arcs, top["state"], scorer.end)[0] == pytest.approx(case["pending_end_log10"], abs=2e-5)


def walk(labels, scorer):
    "The terms of some keys, the last node, the nodes."
    nodes, counts, node, terms = np.zeros(len(labels) + 1, NODE), np.array([1]), 0, []
    nodes["child"], nodes[0]["state"], nodes[0]["label"] = -1, scorer.start, -1
    for label in labels:
        term, state = key_term(nodes, node, label, scorer)
        node = node_of(node, label, term, state, nodes, counts, scorer.backspace)
        terms.append(float(term))
    return terms, node, nodes


@pytest.mark.parametrize("text, same", [("cz⌫at", "cat"), ("ab ⌫c", "abc"), ("⌫⌫a", "a"), ("a⌫⌫⌫b", "b"), ("a  ⌫⌫b", "ab"), ("Ab⌫⌫c", "c"), ("ab⌫b⌫b", "ab")])
def test_backspace_undoes_any_key(models, text, same):
    "The terms of a text with backspaces sum to those of what is left on the screen."
    scorer = make_scorer(QWERTY, BeamSettings(lm_weight=1.3, insertion_bonus=0.7), models[3][0])
    ours, other = (sum(walk(QWERTY.labels_of_text(t), scorer)[0]) for t in (text, same))
    assert ours == pytest.approx(other, abs=1e-9) and ours != 0


SEARCHES = [dict(), dict(beam=7, top_classes=4), dict(beam=1), dict(beam=12, top_classes=0, lm_weight=0.5, insertion_bonus=-1.0), dict(beam=9, lm_weight=-1.0), dict(lm_weight=0.0)]


def noise(n_frames, charset, seed, scale=2.0):
    "Emissions with held keys, and with many backspaces where there are any."
    log_probs = scale * torch.randn(n_frames // 2, charset.n_classes, generator=torch.Generator().manual_seed(seed)).repeat_interleave(2, dim=0)
    log_probs += 0.5 * torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(seed + 100))
    if "⌫" in charset.chars: log_probs[:, [charset.index("⌫"), charset.blank]] += 2
    return log_probs.log_softmax(-1)


@pytest.mark.parametrize("options", SEARCHES, ids=str)
@pytest.mark.parametrize("n", [None, 1, 2, 4])
def test_beam_equals_a_plain_search(bench, models, options, n):
    "All texts of the beam in their order, with onsets and scores, before and after the end."
    table, plain_model = models[n] if n else (None, None)
    settings = BeamSettings(**options)
    for seed, charset in enumerate((QWERTY, QWERTY, FINGERS)):
        log_probs = noise(50, charset, seed)
        plain, ours = bench.PlainSearch(charset, settings, plain_model), searched(log_probs, settings, table, charset)
        plain.push(log_probs)
        for _ in range(2):
            expected, got = plain.n_best(1000), ours.n_best(1000)
            assert [(d.text, d.frames.tolist()) for d in got] == [(text, onsets) for text, onsets, _ in expected]
            assert [d.score for d in got] == pytest.approx([score for *_, score in expected], abs=1e-9)
            plain.finish(), ours.finish()


def test_beam_finds_the_sum_over_all_paths():
    "Three frames, four classes, all 64 paths added up by hand."
    charset = FINGERS.without(" l;r"[:2] + ";", "three")
    log_probs = torch.randn(3, charset.n_classes, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    sums = {}
    for path in itertools.product(range(charset.n_classes), repeat=3):
        text = tuple(k for k, _ in itertools.groupby(path) if k != charset.blank)
        sums[text] = sums.get(text, 0) + float(torch.stack([log_probs[t, k] for t, k in enumerate(path)]).double().sum().exp())
    found = {tuple(d.labels.tolist()): np.exp(d.score) for d in searched(log_probs, BeamSettings(beam=1000, top_classes=0), None, charset).n_best(1000) if np.isfinite(d.score)}
    assert found.keys() == sums.keys() and all(found[text] == pytest.approx(sums[text], abs=1e-7) for text in sums)


def test_compiled_and_plain_functions_agree(models):
    "The kernels run uncompiled too, and give the same."
    log_probs, settings = noise(20, QWERTY, 9), BeamSettings(beam=6)
    ours, scorer = searched(log_probs, settings, models[3][0]), make_scorer(QWERTY, settings, models[3][0])
    beam = new_beam(6, 10, QWERTY.n_classes, scorer.start, 1000)
    assert read_frames(log_probs.double().numpy(), 0, beam, scorer) == 20
    assert [read_text(beam, e, QWERTY).text for e in beam.entries] == [d.text for d in ours.n_best(6)]
    assert beam.entries["score"].tolist() == pytest.approx([d.score for d in ours.n_best(6)], abs=1e-9)


def test_memory_stays_bounded_and_changes_nothing(models, monkeypatch):
    "With hardly any room the trees are tidied up all the time, and grow with the text only."
    log_probs = noise(3000, QWERTY, 4)
    roomy = searched(log_probs, BeamSettings(beam=8), models[3][0])
    monkeypatch.setattr(BeamDecoder, "ROOM", 8)
    tight = searched(log_probs, BeamSettings(beam=8), models[3][0])
    assert [(d.text, d.frames.tolist(), d.score) for d in tight.n_best(8)] == [(d.text, d.frames.tolist(), d.score) for d in roomy.n_best(8)]
    assert len(tight.beam.nodes) < 3 * len(tight.best().text) + 100 < len(roomy.beam.nodes)
    quiet = torch.full((20000, QWERTY.n_classes), -9.0)
    quiet[:, QWERTY.blank] = 0
    tight.reset()
    tight.push(quiet.log_softmax(-1))
    assert len(tight.beam.nodes) < 1000 and len(tight.beam.times) < 1000 and tight.n_frames == 20000


def test_pieces_of_a_stream(models):
    "Both decoders, cut anywhere, read what one call reads; reset forgets."
    log_probs, generator = noise(120, QWERTY, 6), torch.Generator().manual_seed(7)
    for name, options in (("greedy", {}), ("beam", dict(lm=models[2][0])), ("beam", dict(settings=BeamSettings(finish=True), lm=models[2][0]))):
        [whole] = get_decoder(name)(one(log_probs), QWERTY, **options)
        stream = make_stream(name, "qwerty", **options)
        for _ in range(4):
            for piece in torch.tensor_split(log_probs, torch.randint(0, 121, (5,), generator=generator).sort().values.tolist()): stream.push(piece)
            for _ in range(2): check(stream.finished(), dict(text=whole.text, labels=whole.labels.tolist(), timestamps=whole.frames.tolist()))
            assert stream.finished().score == whole.score and stream.finished().labels.dtype == np.int32
            stream.reset()
        assert stream.finished().text == "" and len(stream.finished().frames) == 0
    with pytest.raises(DecodeError, match="greedy decoder takes neither"): make_stream("greedy", QWERTY, lm=models[2][0])
    with pytest.raises(DecodeError, match="there are: greedy, beam"): make_stream("beem", QWERTY)


def test_finish_is_said_once(models):
    log_probs = noise(30, QWERTY, 8)
    log_probs[20:], log_probs[20:, QWERTY.index("a")] = -9.0, 0.0
    decoder = searched(log_probs.log_softmax(-1), None, models[2][0])
    before, after = decoder.best().score, decoder.finish().score
    assert decoder.finish().score == after != before
    with pytest.raises(DecodeError, match="call reset"): decoder.push(noise(4, QWERTY, 8))


def test_table_against_dictionaries(models):
    "Every state reached by random words gives the probabilities of the dictionaries, and they sum to one."
    rng = np.random.default_rng(0)
    for table, plain in models.values():
        for _ in range(30):
            word, state = "".join(rng.choice(list("abcdefghijklmnop"), rng.integers(0, 7))), table.start
            for k, letter in enumerate(word):
                score, state = table_score(table, state, letter)
                assert score == pytest.approx(plain.score(tuple(word[:k]), letter), abs=1e-5)
            assert sum(10 ** table_score(table, state, w)[0] for w in table.symbols if w != "<s>") == pytest.approx(1, abs=1e-4)
        assert table_score(table, table.start, "no such word") == (pytest.approx(plain.score(("a", "#"), "#"), abs=9), 0)


def test_broken_tables_are_refused(models):
    table = models[2][0]
    loop = table.backoff_state.copy()
    loop[1], loop[2] = 2, 1
    for change, message in ((dict(arc_next=table.arc_next[:-1]), "arc_next has"), (dict(arc_next=table.arc_next + 10**6), "arc_next leaves"), (dict(backoff_state=loop), "backing off"),
                            (dict(arc_symbol=table.arc_symbol[::-1].copy()), "does not rise"), (dict(arc_log10=table.arc_log10 * np.nan), "not finite"),
                            (dict(start=10**6), "beginning"), (dict(arc_start=table.arc_start + 1), "arc_start")):
        with pytest.raises(DecodeError, match=message): dataclasses.replace(table, **change)
    with pytest.raises(DecodeError, match="knows no key of charset 'qwerty'.*single letters"):
        BeamDecoder(QWERTY, lm=dataclasses.replace(table, symbols=tuple(f"<{s}>" if s != "</s>" else s for s in table.symbols)))


@pytest.mark.parametrize("wrong, message", [(dict(beam=0), "at least 1"), (dict(beam=2.5), "whole number"), (dict(lm_weight=float("nan")), "lm_weight.*finite"),
                                            (dict(insertion_bonus=float("inf")), "insertion_bonus"), (dict(top_classes="all"), "top_classes")])
def test_settings_out_of_range(wrong, message):
    with pytest.raises(DecodeError, match=message): BeamSettings(**wrong)


def test_bad_emissions_leave_the_search_as_it_was():
    log_probs = noise(40, QWERTY, 3)
    decoder, whole = BeamDecoder(QWERTY), searched(log_probs)
    decoder.push(log_probs[:20])
    bad, nothing, hot = log_probs[20:].clone(), log_probs[20:].clone(), log_probs[20:].clone()
    bad[7, 3], nothing[8], hot[9, 0] = float("nan"), -float("inf"), float("inf")
    for piece, message in ((bad, "frame 27 .* nan"), (nothing, "frame 28 .* -inf"), (hot, "frame 29 .* inf"), (log_probs[:, :-1], "98.*needs .T, 99."), (log_probs[None], "shape")):
        with pytest.raises(DecodeError, match=message): decoder.push(piece)
    decoder.push(log_probs[20:20])
    decoder.push(log_probs[20:])
    assert decoder.best().text == whole.best().text and decoder.best().score == whole.best().score


def test_a_written_case():
    "Two frames, by hand: the best path says nothing, the best text is j."
    log_probs = torch.full((2, FINGERS.n_classes), 1e-9)
    log_probs[:, FINGERS.index("j")], log_probs[:, FINGERS.blank] = 0.4, 0.6
    best, second = searched(log_probs.log(), charset=FINGERS).n_best(2)
    assert (best.text, second.text) == ("j", "") and (best.score, second.score) == pytest.approx((np.log(0.64), np.log(0.36)), abs=1e-6)


def test_works_where_nothing_can_be_written(tmp_path):
    "Numba finds no folder for its cache; the search runs all the same."
    code = ("import numba.core.caching as c\nc.CacheImpl._locator_classes = []\nimport torch\nfrom semgbook.decoders import BeamDecoder\n"
            "d = BeamDecoder('fingers'); d.push(torch.zeros(3, 7).log_softmax(-1)); assert len(d.best().text) > 0; print('read')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "read", done.stderr
