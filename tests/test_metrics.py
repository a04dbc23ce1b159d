"Error counts against golden numbers, stored predictions of real models, and each other."
import json
import sys

import numpy as np
import pytest

from semgbook.metrics import (PUBLISHED, ErrorCounts, MetricError, align, alignment_text, apply_backspaces, count_errors,
                              count_errors_after_backspaces, count_errors_many, edit_places, edits_and_wrong, split_range, total_errors)


@pytest.fixture
def golden(shared):
    return json.loads(shared("golden/metrics.json").read_text())


@pytest.fixture
def without_rapidfuzz(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "rapidfuzz"]: monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(ImportError):
        from rapidfuzz.distance import Levenshtein  # noqa: F401


def random_pairs(n=60, seed=0, letters="abc ⌫⇧"):
    generator = np.random.default_rng(seed)
    text = lambda: "".join(generator.choice(list(letters), generator.integers(0, 25)))
    return [(text(), text()) for _ in range(n)]


def check_pair(pair):
    counts = count_errors(pair["reference"], pair["prediction"])
    assert counts.n_reference == pair["reference_length"] and counts.n_predicted == len(pair["prediction"])
    assert counts.edits == pair["insertions"] + pair["deletions"] + pair["substitutions"]
    assert counts.cer == (None if pair["CER"] is None else pytest.approx(pair["CER"], abs=1e-9))
    fewest, most = pair["substitutions_range"]
    assert fewest <= counts.wrong <= most or [counts.missed, counts.extra, counts.wrong] == pair["split_second"]
    assert edits_and_wrong(pair["reference"], pair["prediction"], +1) == (counts.edits, fewest)
    assert edits_and_wrong(pair["reference"], pair["prediction"], -1) == (counts.edits, most)
    assert split_range(pair["reference"], pair["prediction"]) == (fewest, most)
    if fewest == most:
        expected = {name: pair[name.upper()] for name in PUBLISHED}
        assert {name: counts.rates()[name] for name in PUBLISHED} == pytest.approx(expected, abs=1e-9) or pair["CER"] is None
    return counts


def test_golden_pairs(golden):
    for pair in golden["pairs"]: check_pair(pair)


def test_golden_split_of_the_second_version(golden):
    "rapidfuzz walks like Levenshtein 0.27: the split is equal, not only within the range."
    pytest.importorskip("rapidfuzz")
    for pair in golden["pairs"]:
        counts = count_errors(pair["reference"], pair["prediction"])
        assert [counts.missed, counts.extra, counts.wrong] == pair["split_second"]


def test_golden_pairs_without_rapidfuzz(golden, without_rapidfuzz):
    for pair in golden["pairs"]:
        assert check_pair(pair).wrong == pair["substitutions_range"][0]


def test_golden_running_totals(golden):
    total, pairs = ErrorCounts(), golden["pairs"]
    slack = 0
    for batch in golden["running_totals"]:
        for i in batch["pairs"]: slack += np.ptp(pairs[i]["substitutions_range"])
        total += total_errors(count_errors_many([pairs[i]["reference"] for i in batch["pairs"]],
                                                [pairs[i]["prediction"] for i in batch["pairs"]]))
        assert total.n_reference == batch["reference_length"]
        assert total.edits == batch["insertions"] + batch["deletions"] + batch["substitutions"]
        assert total.cer == (None if batch["CER"] is None else pytest.approx(batch["CER"], abs=1e-9))
        assert abs(total.wrong - batch["substitutions"]) <= slack


@pytest.mark.parametrize("name, edits, predicted, concatenated, exact, empty, mean_cer", [
    ("transformer_beam10", 1051, 4051, 977, 386, 8, 26.2538), ("run1_greedy", 1079, 4021, 1011, 370, 9, 26.5474)])
def test_predictions_of_real_models(shared, name, edits, predicted, concatenated, exact, empty, mean_cer):
    rows = [json.loads(line) for line in shared(f"data/predictions/{name}.jsonl").read_text().splitlines()]
    stored = json.loads(shared(f"data/predictions/{name}.metrics.json").read_text())
    references, predictions = [r["gt_text"] for r in rows], [r["pred_text"] for r in rows]
    counts = count_errors_many(references, predictions)
    assert [c.edits for c in counts] == [r["edit_distance"] for r in rows]
    total = total_errors(counts)
    assert (len(rows), total.n_reference, total.n_predicted, total.edits) == (1047, 4397, predicted, edits)
    assert total.cer == pytest.approx(100 * stored["cer"], abs=1e-9)
    assert total.extra - total.missed == predicted - 4397
    joined = count_errors("".join(references), "".join(predictions))
    assert joined.edits == concatenated and joined.cer < total.cer    # errors at window borders cancel
    assert sum(c.edits == 0 for c in counts) == exact and predictions.count("") == empty
    assert np.mean([c.cer for c in counts]) == pytest.approx(mean_cer, abs=1e-4)


def test_both_engines_agree(monkeypatch):
    pairs = random_pairs()
    compiled = [count_errors(*pair).edits for pair in pairs]
    monkeypatch.setattr("semgbook.metrics.rapidfuzz_levenshtein", lambda: None)
    assert compiled == [count_errors(*pair).edits for pair in pairs]


def brute(reference, prediction):
    "Edit distance by the textbook recursion, cell by cell."
    row = list(range(len(prediction) + 1))
    for i, r in enumerate(reference, 1):
        last, row = row, [i]
        for j, p in enumerate(prediction, 1): row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (r != p)))
    return row[-1]


def test_against_the_textbook():
    for pair in random_pairs(seed=1):
        assert count_errors(*pair).edits == edits_and_wrong(*pair)[0] == brute(*pair)


@pytest.mark.parametrize("prefer", [None, "gaps", "wrong"])
def test_alignment_is_an_alignment(prefer):
    for reference, prediction in random_pairs(seed=2):
        columns = align(reference, prediction, prefer)
        assert "".join(c.reference for c in columns) == reference
        assert "".join(c.prediction for c in columns) == prediction
        counts = count_errors(reference, prediction)
        assert sum(c.kind != "same" for c in columns) == counts.edits
        assert all((c.kind == "same") == (c.reference == c.prediction) for c in columns)
        assert all((c.kind == "missed") == (c.prediction == "") and (c.kind == "extra") == (c.reference == "") for c in columns)
        if prefer is None: assert sum(c.kind == "wrong" for c in columns) == counts.wrong


def test_alignment_without_rapidfuzz(without_rapidfuzz):
    for pair in random_pairs(seed=3):
        assert sum(c.kind == "wrong" for c in align(*pair)) == count_errors(*pair).wrong


def test_alignment_text_wraps_and_shows_spaces_and_gaps():
    text = alignment_text(align("a b" * 50, "a b" * 49), width=40)
    blocks = text.split("\n\n")
    assert len(blocks) == 4 and all(len(block.splitlines()) == 3 for block in blocks)
    assert "␣" in text and "·" in text and "---" in text
    assert alignment_text([]) == ""


def test_counts_are_additive_and_checked():
    a, b = count_errors("abxc", "abc"), count_errors("abc", "abxcy")
    assert a == ErrorCounts(4, 3, missed=1) and (a + b).extra == 2 and a + ErrorCounts() == a
    with pytest.raises(MetricError, match="exchanged"): ErrorCounts(4, 3, extra=1)
    assert set(a.rates()) == {"cer", *PUBLISHED, *PUBLISHED.values()}


def test_empty_reference_has_no_rate_but_counts():
    pause = count_errors("", "ab")
    assert set(pause.rates().values()) == {None}
    assert (pause + count_errors("cd", "cd")).cer == 100.0
    assert count_errors("", "").cer is None and total_errors([]) == ErrorCounts()


def test_cer_above_hundred():
    assert count_errors("a", "bcdefg").cer == 600


def test_wrong_input_is_refused():
    with pytest.raises(MetricError, match="ndarray"): count_errors("a", np.array([0]))
    with pytest.raises(MetricError, match="2 references and 1"): count_errors_many(["a", "b"], ["a"])
    with pytest.raises(MetricError, match="gaps"): align("a", "b", prefer="best")


def test_unusual_characters():
    "Characters outside the basic plane are one character each, with both engines."
    assert count_errors("a😀b", "ab").missed == 1 and edits_and_wrong("a😀b", "ab") == (1, 0)


@pytest.mark.parametrize("keys, screen", [("", ""), ("⌫a", "a"), ("ab⌫⌫⌫c", "c"), ("⇧A⌫b", "b"), ("a⇧⌫b", "b"), ("a⏎b⌫", "a⏎")])
def test_apply_backspaces(keys, screen):
    assert apply_backspaces(keys) == screen


@pytest.mark.parametrize("engine", ["rapidfuzz", "numpy"])
def test_edit_places_are_those_of_the_alignment(engine, monkeypatch):
    if engine == "numpy": monkeypatch.setattr("semgbook.metrics.rapidfuzz_levenshtein", lambda: None)
    for pair in random_pairs(seed=4):
        position, expected = 0, []
        for column in align(*pair):
            if column.kind != "same": expected.append(position)
            position += bool(column.reference)
        assert edit_places(*pair).tolist() == expected


def test_errors_on_the_screen():
    screen = lambda text: apply_backspaces(text)
    for pair in random_pairs(seed=5): assert count_errors_after_backspaces(*pair) == count_errors(*map(screen, pair))
    assert count_errors_after_backspaces("ab⌫c", "ax⌫c").edits == 0 and count_errors("ab⌫c", "ax⌫c").edits == 1
    assert count_errors_after_backspaces("ab<", "a", backspace="<").edits == 0 and count_errors_after_backspaces("⌫", "a").cer is None
