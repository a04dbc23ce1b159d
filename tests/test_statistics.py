"Intervals keep their promise, tests are exact, claims name their units, and what cannot be said is refused."
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook.metrics import align, count_errors
from semgbook.statistics import (ErrorTable, Scored, StatisticsError, across_seeds, averages, cer_interval, characters_needed, choose_unit,
                                 compare, compare_published, compare_seeds, compare_seeds_and_texts, comparison_table, design_effect,
                                 error_correlation, error_table, expanded_percentiles, holm, macro_cer, mean_and_std, micro_cer, resample_sums, sign_flip_p)

TEXT = st.text("abc ⌫", max_size=60)


def scored(errors, session="s", user="u"):
    "A text whose errors are where the bools (T,) say."
    return Scored(session, user, "a" * len(errors), "".join(np.where(errors, "#", "a")))


def runs(rng, rate, n=2000, n_sessions=6, n_users=2, spread=0.3, cluster=1):
    "Sessions of a method; errors come in whole runs of `cluster` characters, rates vary between sessions by `spread` of themselves."
    rates = rate * np.exp(rng.normal(0, spread, n_sessions)) if spread else np.full(n_sessions, rate)
    return [scored(np.repeat(rng.random(n // cluster) < p, cluster), f"s{i}", f"u{i % n_users}") for i, p in enumerate(rates)]


# --- blocks and tables --------------------------------------------------------------------------

def walk(reference, prediction, block):
    "Edits of each block, by a walk along the alignment; what is extra belongs to the typed character that follows, or to the last one."
    edits, typed = [0] * max(-(-len(reference) // block), 1), 0
    for column in align(reference, prediction):
        edits[min(typed // block, len(edits) - 1)] += column.reference != column.prediction
        typed += bool(column.reference)
    return edits


@settings(deadline=None, max_examples=200)
@given(st.text("abc ⌫", min_size=1, max_size=60), TEXT, st.integers(1, 20))
def test_blocks_are_a_walk_along_the_alignment_and_add_up(reference, prediction, block):
    table = error_table([Scored("s", "u", reference, prediction)], block)
    assert table.edits.tolist() == walk(reference, prediction, block) and len(table.edits) == -(-len(reference) // block)
    assert table.edits.sum() == count_errors(reference, prediction).edits
    assert table.typed.sum() == len(reference) and table.typed.min() > 0 and table.typed.max() <= block


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8), st.integers(1, 20))
def test_stretches_of_a_session_are_joined(pairs, block):
    if not any(reference for reference, _ in pairs): return
    table = error_table([Scored("s", "u", *pair) for pair in pairs], block)
    assert table.edits.sum() == sum(count_errors(*pair).edits for pair in pairs)
    assert table.typed.sum() == sum(len(reference) for reference, _ in pairs) and (table.typed[:-1] == block).all()


def test_order_of_sessions_does_not_matter():
    rng = np.random.default_rng(0)
    a, b = runs(rng, 0.2, n_sessions=7), runs(rng, 0.2, n_sessions=7)
    assert cer_interval(a) == cer_interval(a[::-1]) and compare(a, b) == compare(a[::-1], b[3:] + b[:3])


def test_any_object_with_the_four_fields_will_do():
    text = SimpleNamespace(session="s", user="u", reference="abcd" * 50, prediction="abxd" * 50, counts=None)
    assert cer_interval([text]).cer == micro_cer([text]) == 25


def test_tables_that_make_no_sense_are_refused():
    with pytest.raises(StatisticsError, match="'s' is given for more than one user"): error_table([Scored("s", "u", "a", "a"), Scored("s", "v", "a", "a")])
    with pytest.raises(StatisticsError, match="nothing was typed"): error_table([Scored("s", "u", "", "abc")])
    with pytest.raises(StatisticsError, match="nothing was typed"): error_table([])
    with pytest.raises(StatisticsError, match="block = 0"): error_table([Scored("s", "u", "a", "a")], block=0)


# --- averages -----------------------------------------------------------------------------------

def test_micro_and_macro():
    texts = [Scored("s1", "a", "abcd", "abcd"), Scored("s2", "a", "efgh", "efgx"), Scored("s3", "b", "ij", "ix"), Scored("s4", "b", "", "")]
    assert micro_cer(texts) == 20 and macro_cer(texts) == (31.25, 18.75) and macro_cer(texts, "session")[0] == 25
    table = averages(texts)
    assert table["cer"].tolist() == [20, 31.25, 25] and (table[["n_characters", "n_sessions", "n_users"]] == [10, 4, 2]).all(axis=None)


def test_published_columns():
    "One column of the paper's table by hand; the page holds all twelve."
    assert "{:.2f}±{:.2f}".format(*mean_and_std([61.48, 59.96, 48.00, 54.69, 58.24, 53.86, 54.66, 52.17])) == "55.38±4.10"


# --- resampling ---------------------------------------------------------------------------------

def ragged_table(rng):
    "Three users with 1, 2 and 4 sessions of unequal length."
    per_session = [3, 5, 2, 7, 1, 4, 6]
    typed = rng.integers(20, 60, sum(per_session))
    return ErrorTable(rng.binomial(typed, 0.2), typed, np.repeat(np.arange(7), per_session), np.array([0, 1, 1, 2, 2, 2, 2]), tuple("abcdefg"), tuple("xyz"))


def loop_over_resamples(table, unit, n_resamples, rng):
    "The same draw, written out one unit at a time."
    session_of, rows = {s: np.flatnonzero(table.session == s) for s in range(len(table.sessions))}, []
    for _ in range(n_resamples):
        if unit == "users":
            users = rng.integers(0, len(table.users), len(table.users))
            sessions = [s for u in users for own in [np.flatnonzero(table.user == u)] for s in own[rng.integers(0, len(own), len(own))]]
        elif unit == "sessions": sessions = rng.integers(0, len(table.sessions), len(table.sessions))
        if unit == "blocks": drawn = rng.integers(0, len(table.edits), len(table.edits))
        else: drawn = np.concatenate([session_of[s][rng.integers(0, len(session_of[s]), len(session_of[s]))] for s in sessions])
        rows.append((table.edits[drawn].sum(), table.typed[drawn].sum()))
    return np.array(rows)


@pytest.mark.parametrize("unit", ["users", "sessions", "blocks"])
def test_resampling_is_the_loop_in_another_form(unit):
    table, n = ragged_table(np.random.default_rng(0)), 6000
    values = np.stack([table.edits, table.typed], 1)
    fast, slow = resample_sums(table, values, unit, n, np.random.default_rng(1)), loop_over_resamples(table, unit, n, np.random.default_rng(2))
    standard_error = np.sqrt(2 / n) * slow.std(0)
    assert (np.abs(fast.mean(0) - slow.mean(0)) < 4 * standard_error).all()
    assert np.cov(fast.T) == pytest.approx(np.cov(slow.T), rel=0.12)
    for q in (0.05, 0.5, 0.95):
        assert np.quantile(fast[:, 0] / fast[:, 1], q) == pytest.approx(np.quantile(slow[:, 0] / slow[:, 1], q), abs=0.004)


@pytest.mark.parametrize("unit", ["users", "sessions"])
def test_whole_units_hold_whole_units(unit):
    "Not nested: every resample is a sum of unit totals, of which there are finitely many."
    table = ragged_table(np.random.default_rng(0))
    totals = np.bincount(table.place(unit), table.edits)
    possible = {sum(c) for c in itertools.combinations_with_replacement(totals, table.sizes[unit])}
    sums = resample_sums(table, table.edits[:, None], unit, 500, np.random.default_rng(0), nested=False)[:, 0]
    assert set(sums) <= possible and len(set(sums)) > 3


def test_interval_repeats_and_contains_the_rate():
    text = [scored(np.random.default_rng(0).random(3000) < 0.2)]
    cer, low, high, *drawn = cer_interval(text)
    assert (cer, low, high) == cer_interval(text)[:3] != cer_interval(text, seed=1)[:3] and drawn == ["blocks", 60]
    assert low < cer < high and cer == micro_cer(text)
    narrow = cer_interval(text, level=0.5)
    assert low < narrow.low < narrow.high < high


def test_interval_of_blocks_is_the_plain_bootstrap():
    "Drawn here with another generator, one resample after the other."
    text, rng = scored(np.random.default_rng(0).random(3000) < 0.2), np.random.default_rng(7)
    edits = walk(text.reference, text.prediction, 50)
    rates = [100 * sum(rng.choice(edits, 60)) / 3000 for _ in range(4000)]
    interval = cer_interval([text])
    assert tuple(expanded_percentiles(np.array(rates), 60)) == pytest.approx((interval.low, interval.high), abs=0.15)


def test_more_text_is_a_narrower_interval():
    rng = np.random.default_rng(0)
    errors = rng.random((4, 16, 3000)) < 0.2
    width = [np.mean([np.subtract(*cer_interval([scored(e, f"s{i}") for i, e in enumerate(some[:n])], unit="blocks")[2:0:-1]) for some in errors])
             for n in (1, 4, 16)]
    assert width[1] == pytest.approx(width[0] / 2, rel=0.15) and width[2] == pytest.approx(width[0] / 4, rel=0.15)


def test_too_little_text_has_no_interval():
    assert cer_interval([scored([True, False])])[1:] == (None, None, "blocks", 1)
    with pytest.raises(StatisticsError, match="one of users only"): compare([scored([True])], [scored([False])], unit="users")


@pytest.mark.parametrize("level", [95, 0, 1])
def test_level_is_a_share(level):
    with pytest.raises(StatisticsError, match="share"): cer_interval([scored(np.ones(200, bool))], level=level)


@pytest.mark.parametrize("n_users, n_sessions, unit", [(6, 6, "users"), (5, 10, "sessions"), (5, 5, "blocks"), (1, 6, "sessions"), (1, 1, "blocks")])
def test_unit_is_the_highest_with_six_members(n_users, n_sessions, unit):
    table = error_table([scored([True] * 60, f"s{i}", f"u{i % n_users}") for i in range(n_sessions)])
    assert choose_unit(table) == unit and choose_unit(table, "blocks") == "blocks"
    with pytest.raises(StatisticsError, match="choose None"): choose_unit(table, "words")


# --- coverage -----------------------------------------------------------------------------------

def coverage_of_units(unit, n_simulated=300):
    "How often the interval of twelve sessions, each with its own rate, contains the rate of sessions to come."
    rng, hits = np.random.default_rng(5), 0
    truth = 0.2
    for _ in range(n_simulated):
        rates = rng.beta(0.2 * 40, 0.8 * 40, 12)
        edits = rng.binomial(50, np.repeat(rates, 40))
        table = ErrorTable(edits, np.full(480, 50), np.repeat(np.arange(12), 40), np.zeros(12, int), tuple(range(12)), ("u",))
        sums = resample_sums(table, np.stack([table.edits, table.typed], 1), unit, 300, rng)
        low, high = expanded_percentiles(sums[:, 0] / sums[:, 1], table.sizes[unit])
        hits += low <= truth <= high
    return hits / n_simulated


def test_coverage_of_sessions_and_its_lack_in_blocks():
    "Standard error of a coverage of 95 % from 300 simulations: 1.3 points."
    assert 0.91 < coverage_of_units("sessions") < 0.985
    assert coverage_of_units("blocks") < 0.6


def test_coverage_over_blocks_of_one_recording():
    rng, hits = np.random.default_rng(6), {1: 0, 50: 0}
    for _ in range(200):
        text = scored(np.repeat(rng.random(500) < 0.2, 8))  # 4000 characters, errors in runs of eight
        for block in hits:
            interval = cer_interval([text], block=block, n_resamples=200)
            hits[block] += interval.low <= 20 <= interval.high
    assert hits[50] / 200 > 0.89 and hits[1] / 200 < 0.7


def test_coverage_of_a_difference():
    rng, hits, n = np.random.default_rng(7), 0, 250
    for _ in range(n):
        p = np.repeat(rng.beta(8, 32, 8), 30)
        a, b = rng.binomial(50, p), rng.binomial(50, 0.9 * p)
        table = ErrorTable(a, np.full(240, 50), np.repeat(np.arange(8), 30), np.arange(8), tuple(range(8)), tuple(range(8)))
        sample = resample_sums(table, (b - a)[:, None], "users", 300, rng, nested=False)[:, 0] / (50 * 240)
        low, high = expanded_percentiles(sample, 8)
        hits += low <= -0.1 * 0.2 <= high
    assert 0.90 < hits / n < 0.985


# --- paired tests -------------------------------------------------------------------------------

@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=11))
def test_sign_flips_are_exact(differences):
    d = np.array(differences)
    signs = np.array(list(itertools.product([1, -1], repeat=len(d))))
    assert sign_flip_p(d) == pytest.approx(np.mean(np.abs(signs @ d) >= abs(d.sum())), abs=1e-10)


def test_sign_flips_of_many_units():
    "A thousand units: against the normal law, and random signs."
    rng = np.random.default_rng(0)
    d = rng.integers(-6, 8, 1000)
    assert sign_flip_p(d[:300]) == pytest.approx(np.mean(np.abs((1 - 2 * rng.integers(0, 2, (20000, 300))) @ d[:300]) >= abs(d[:300].sum())), abs=0.02)
    assert sign_flip_p(np.zeros(5, int)) == 1 and 0 < sign_flip_p(np.ones(1000, int)) <= 1e-12
    with pytest.raises(StatisticsError, match="whole numbers"): sign_flip_p([0.5, 1])


def test_p_values_are_uniform_when_nothing_differs():
    rng, p = np.random.default_rng(8), []
    for _ in range(400):
        rates = rng.beta(8, 32, 10)
        p.append(sign_flip_p(rng.binomial(500, rates) - rng.binomial(500, rates)))
    p = np.sort(p)
    assert np.abs(p - np.arange(1, 401) / 400).max() < 1.63 / np.sqrt(400)  # Kolmogorov-Smirnov at 1 %
    for alpha in (0.01, 0.05, 0.2): assert np.mean(p <= alpha) <= alpha + 3 * np.sqrt(alpha / 400)


def test_whole_comparison_under_the_null():
    rng, found = np.random.default_rng(9), 0
    for _ in range(150):
        found += compare(runs(rng, 0.2, n=600, n_sessions=8, spread=0), runs(rng, 0.2, n=600, n_sessions=8, spread=0), n_resamples=200).established
    assert found <= 15  # 7.5 expected; 15 or more has a chance of about 1 %


def test_a_known_shift_is_found_and_lies_in_the_interval():
    rng = np.random.default_rng(10)
    a, b = runs(rng, 0.20, n=4000, n_sessions=8, spread=0), runs(rng, 0.16, n=4000, n_sessions=8, spread=0)
    c = compare(a, b, names=("old", "new"))
    assert c.established and c.low < -4 < c.high < 0 and c.difference == pytest.approx(c.cer_b - c.cer_a)
    assert (c.unit, c.n_units, c.n_characters, c.n_sessions, c.n_users) == ("sessions", 8, 32000, 8, 2)
    assert c.interval_a == pytest.approx(cer_interval(a)[1:3]) and c.interval_b == pytest.approx(cer_interval(b)[1:3])
    assert "new" in c.sentence and "larger than chance" in c.sentence and "8 recordings of 2 users" in c.sentence


def test_exchanging_the_methods_changes_the_sign_only():
    rng = np.random.default_rng(11)
    a, b = runs(rng, 0.2, n_users=1), runs(rng, 0.2, n_users=1)
    for unit in ("sessions", "blocks"):
        there, back = compare(a, b, unit=unit), compare(b, a, unit=unit)
        assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
        assert back.p_value == there.p_value and back.z == pytest.approx(-there.z) and back.interval_a == there.interval_b


def test_pairing_is_sharper_than_two_intervals():
    "The same errors and a few more: the intervals overlap, the difference is sure."
    rng = np.random.default_rng(12)
    a = runs(rng, 0.2, n_sessions=8)
    b = [Scored(t.session, t.user, t.reference, t.prediction[:-100] + "a" * 100) for t in a]
    c = compare(a, b)
    assert c.established and c.interval_b[1] > c.interval_a[0] and c.high < 0


def test_noise_of_blocks_is_counted_once():
    "The interval of a difference is as long as Student's over the sessions' own differences."
    from scipy import stats
    rng = np.random.default_rng(15)
    a, b = runs(rng, 0.2, n_sessions=30, spread=0), runs(rng, 0.2, n_sessions=30, spread=0)
    d = [micro_cer([y]) - micro_cer([x]) for x, y in zip(a, b, strict=True)]
    c = compare(a, b)
    assert c.high - c.low == pytest.approx(np.ptp(stats.t.interval(0.95, 29, np.mean(d), stats.sem(d))), rel=0.1)


def test_method_against_itself():
    a = runs(np.random.default_rng(0), 0.2)
    c = compare(a, a)
    assert (c.difference, c.low, c.high, c.p_value, c.z) == (0, 0, 0, 1, 0) and not c.established


def test_claims_speak_of_what_was_drawn():
    rng = np.random.default_rng(0)
    people, one = runs(rng, 0.2, n_users=6), runs(rng, 0.2, n_sessions=1, n_users=1)
    assert "other people, as far as these 6 users" in compare(people, people).claim
    assert compare(one, one).claim == "more text of 1 recording of 1 user, not other recordings or other people"


def test_unequal_references_are_refused_by_name():
    a = runs(np.random.default_rng(0), 0.2)
    other = [*a[:2], Scored(a[2].session, a[2].user, "b" + a[2].reference[1:], a[2].prediction), *a[3:]]
    with pytest.raises(StatisticsError, match="'s2' has different reference"): compare(a, other)
    with pytest.raises(StatisticsError, match="'s5' is scored by A only"): compare(a, a[:-1])
    with pytest.raises(StatisticsError, match="'s5' is scored by B only"): compare(a[:-1], a)
    with pytest.raises(StatisticsError, match="different users"): compare(a, [Scored(t.session, "v", t.reference, t.prediction) for t in a])


# --- seeds --------------------------------------------------------------------------------------

def test_seed_intervals_are_students():
    from scipy import stats
    a, b = [20.1, 21.3, 19.7, 20.6], [19.0, 20.9, 19.1, 19.2]
    assert across_seeds(a)[1:] == pytest.approx(stats.t.interval(0.95, 3, np.mean(a), stats.sem(a)))
    paired, welch = compare_seeds(dict(enumerate(a)), dict(enumerate(b))), compare_seeds(dict(enumerate(a)), dict(enumerate(b, 10)))
    assert paired.p_value == pytest.approx(stats.ttest_rel(b, a).pvalue) and welch.difference == paired.difference
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert welch.p_value == pytest.approx(expected.pvalue)
    assert (welch.low, welch.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert paired.claim == "other training runs, scored on these same texts" and "over 4 seeds" in paired.sentence
    shuffled = compare_seeds(dict(enumerate(a)), dict(reversed(list(enumerate(b)))))
    assert shuffled.p_value == pytest.approx(paired.p_value)
    for bad in (lambda: across_seeds([20.0]), lambda: compare_seeds({0: 1.0}, {0: 2.0})):
        with pytest.raises(StatisticsError, match="one seed"): bad()


def test_coverage_over_seeds_and_texts():
    "Seeds and sessions vary; the interval of each alone is too short, that of both is not."
    rng, hits, n = np.random.default_rng(13), dict(both=0, seeds=0, texts=0), 150
    for _ in range(n):
        session = rng.normal(0, 0.03, 8)  # how much B differs on this session
        draw = lambda base, shift: {s: [scored(rng.random(500) < np.clip(base + seed + x, 0.01, 1), f"s{i}") for i, x in enumerate(shift)]
                                    for s, seed in enumerate(rng.normal(0, 0.012, 4))}
        a, b = draw(0.25, 0 * session), draw(0.22, session)
        cers = [{s: micro_cer(t) for s, t in x.items()} for x in (a, b)]
        for name, c in dict(both=compare_seeds_and_texts(a, b), seeds=compare_seeds(*cers), texts=compare(a[0], b[0], n_resamples=200)).items():
            hits[name] += c.low <= -3 <= c.high
    assert hits["both"] / n > 0.91 and hits["seeds"] / n < 0.9 and hits["texts"] / n < 0.92


def test_seeds_and_texts_are_paired():
    rng = np.random.default_rng(14)
    a, b = ({s: runs(np.random.default_rng(s), rate + 0.01 * s, n=500) for s in range(3)} for rate in (0.2, 0.15))
    there, back = compare_seeds_and_texts(a, b), compare_seeds_and_texts(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low)) and back.p_value == pytest.approx(there.p_value)
    assert there.both and "training runs" in there.sentence and there.interval_a == pytest.approx(back.interval_b)
    b[1] = runs(rng, 0.2, n=499)
    with pytest.raises(StatisticsError, match="'s0' has different reference"): compare_seeds_and_texts(a, b)


# --- several comparisons, published numbers -----------------------------------------------------

@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_holm(p):
    corrected = holm(p)
    for alpha in (0.01, 0.05, 0.2):  # the step-down procedure, written out
        rejected = set()
        for k, i in enumerate(np.argsort(p)):
            if p[i] * (len(p) - k) > alpha: break
            rejected.add(int(i))
        assert rejected == set(np.flatnonzero(corrected <= alpha))
    assert ((corrected >= p) & (corrected <= 1)).all()
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all() and holm([0.01, 0.04, 0.03]).tolist() == [0.03, 0.06, 0.06]


def test_table_is_ready_to_show():
    rng = np.random.default_rng(0)
    a = runs(rng, 0.2)
    rows = [compare(a, runs(rng, rate), names=("A", name)) for name, rate in (("B", 0.2), ("C", 0.1))] + [compare_seeds({0: 1.0, 1: 2.0}, {0: 2.0, 1: 4.0})]
    table = comparison_table(rows)
    assert table["p (Holm)"].tolist() == [f"{p:.2g}" for p in holm([c.p_value for c in rows])] and table["B"].tolist() == ["B", "C", "B"]
    assert table.loc[0, "drawn"] == "6 sessions" and table.loc[1, "B − A (points)"].startswith(f"{rows[1].difference:+.2f} [")
    assert len(comparison_table([])) == 0


@pytest.mark.parametrize("cer_a, cer_b, n, z", [(22.913, 21.522, 3666, 1.43), (18.11, 17.61, 4627, 0.63)])
def test_published_pairs(cer_a, cer_b, n, z):
    c = compare_published(cer_a, cer_b, n)
    assert abs(c.z) == pytest.approx(z, abs=0.005) and not c.established and c.low < 0 < c.high
    assert abs(compare_published(cer_a, cer_b, n, design_effect=4).z) == pytest.approx(abs(c.z) / 2)
    assert compare_published(cer_a, cer_b, n, correlation=0.99).established
    assert compare_published(cer_b, cer_a, n).z == pytest.approx(-c.z)
    assert characters_needed(cer_a, cer_b, design_effect=2) == pytest.approx(2 * characters_needed(cer_a, cer_b), rel=1e-3)


def test_published_test_and_power_by_simulation():
    rng, n = np.random.default_rng(0), characters_needed(22.9, 21.5, power=0.8)
    counts = rng.binomial(n, [[0.229], [0.215]], (2, 2000))
    found = np.mean([compare_published(100 * a / n, 100 * b / n, n).p_value < 0.05 for a, b in counts.T])
    assert found == pytest.approx(0.8, abs=0.03)
    null = rng.binomial(n, 0.2, (2, 2000))
    assert np.mean([compare_published(100 * a / n, 100 * b / n, n).p_value < 0.05 for a, b in null.T]) == pytest.approx(0.05, abs=0.015)
    with pytest.raises(StatisticsError, match="equal rates"): characters_needed(20, 20)
    with pytest.raises(StatisticsError, match="CER B = 0"): compare_published(0.2, 0, 100)


def test_design_effect_of_known_clusters():
    "Errors in whole runs of k characters have the design effect k; independent ones 1; copies are fully correlated."
    rng = np.random.default_rng(0)
    for cluster in (1, 2, 5): assert np.mean([design_effect(runs(rng, 0.2, n=4000, spread=0, cluster=cluster)) for _ in range(10)]) == pytest.approx(cluster, rel=0.1)
    a, b = runs(rng, 0.2, spread=0), runs(rng, 0.2, spread=0)
    assert error_correlation(a, a) == 1 and abs(error_correlation(a, b)) < 0.3
    with pytest.raises(StatisticsError, match="design effect"): design_effect([scored([False] * 500)])


def test_errors_of_a_real_decoder_come_in_clusters(shared):
    "Stored predictions on one recording: the variance over blocks exceeds the binomial one, and has stopped growing much at fifty characters."
    texts = {}
    for name in ("transformer_beam10", "run1_greedy"):
        rows = [json.loads(line) for line in shared(f"data/predictions/{name}.jsonl").read_text().splitlines()]
        texts[name] = [Scored("s", "u", "".join(r["gt_text"] for r in rows), "".join(r["pred_text"] for r in rows))]
        effect = {block: design_effect(texts[name], block) for block in (1, 10, 50, 200)}
        assert effect[1] < effect[10] < effect[50] and 1.2 < effect[50] < 2.2 and effect[200] < 1.5 * effect[50]
    c = compare(*texts.values())
    assert c.unit == "blocks" and c.difference == pytest.approx(100 * (1011 - 977) / 4397) and c.low <= c.difference <= c.high
    assert error_correlation(*texts.values()) > 0.5  # one network, presumably, read out in two ways
