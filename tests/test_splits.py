"Who trains, validates and tests: the rules, their promises, and the guard against leaks."
import inspect
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semgbook.session import open_corpus, write_session
from semgbook.splits import (SPLIT_RULES, Part, Split, SplitError, cut_session, find_leaks, find_overlaps, group_by_user, make_split, rule_options,
                             split_by_fraction, split_by_session, split_by_user, whole)

OPTIONS = {"user": {"val_users": "b", "test_users": ["c"]}, "session": {"val": 1, "test": 1}, "fraction": {"val_fraction": .2}}  # one call of every rule


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Users a, b, c with four sessions each, files named against the order of recording."
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for user in "abc":
        for number in range(4):
            times = 1e9 + 1000 * number + np.arange(int(rng.integers(200, 400))) / 200
            press = np.sort(rng.uniform(times[0], times[-1], 12))
            write_session(folder / f"{user}{9 - number}.hdf5", np.zeros((len(times), 2, 4), np.float32), times, ["j"] * 12, press, press + .05,
                          name=f"{user}-{number}", user=user, rate_hz=200.0)
    return open_corpus(folder)


def names(parts):
    return sorted(p.session.name for p in parts)


def test_every_rule_is_exercised_here():
    assert set(OPTIONS) == set(SPLIT_RULES)
    for rule, function in SPLIT_RULES.items():
        assert list(inspect.signature(function).parameters)[0] == "sessions" and "sessions" not in rule_options(rule)
        assert function.__name__ == f"split_by_{rule}" and function.__doc__


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_a_rule_keeps_its_promises_in_any_order_of_files(rule, corpus):
    split = make_split(rule, corpus, **OPTIONS[rule])
    assert split.name == rule and split.check() is split and find_leaks(split) == []
    for first, second in split.apart:
        assert not set(split.users(first)) & set(split.users(second))
    rng = np.random.default_rng(1)
    for _ in range(3):
        shuffled = [corpus[i] for i in rng.permutation(len(corpus))]
        assert make_split(rule, shuffled, **OPTIONS[rule]).table() == split.table()
    assert all(split.roles().values())
    seen = np.concatenate([np.arange(p.start, p.stop) + 10_000 * corpus.index(p.session) for parts in split.roles().values() for p in parts])
    assert len(seen) == len(set(seen.tolist()))                                       # by brute force: no sample has two roles


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_unknown_and_missing_options_are_refused_by_name(rule, corpus):
    with pytest.raises(SplitError, match=f"'{rule}' has no option val_userz; it has {next(iter(rule_options(rule)))}"):
        make_split(rule, corpus, **OPTIONS[rule], val_userz="a")
    with pytest.raises(SplitError, match="no split rule 'usr'; there are user, session, fraction"):
        make_split("usr", corpus)
    with pytest.raises(SplitError, match="'user' needs val_users, test_users"):
        make_split("user", corpus)
    with pytest.raises(SplitError, match="no sessions to split"):
        make_split(rule, [], **OPTIONS[rule])


def test_by_user_everybody_has_one_role(corpus):
    split = split_by_user(corpus, "b", ("c",))
    assert [split.users(r) for r in ("train", "val", "test")] == [("a",), ("b",), ("c",)] and len(split.train) == 4
    for val, test, message in (("b", "b", "user b is in val and in test"), ("b", ["c", "x", "y"], "test users x, y are not in the corpus, which has a, b, c"),
                               (["a", "b"], "c", "nothing is left to train on")):
        with pytest.raises(SplitError, match=message):
            split_by_user(corpus, val, test)


def test_by_session_the_last_recorded_test(corpus):
    split = split_by_session(corpus, val=1, test=2)
    assert names(split.test) == [f"{u}-{i}" for u in "abc" for i in (2, 3)] and names(split.val) == ["a-1", "b-1", "c-1"] and names(split.train) == ["a-0", "b-0", "c-0"]
    assert names(split_by_session(corpus, val=0, test=1).train) == [f"{u}-{i}" for u in "abc" for i in (0, 1, 2)]
    few = [s for s in corpus if s.name not in ("b-1", "b-2")]
    with pytest.raises(SplitError, match=r"users b \(2\) have fewer than 3 sessions.*drop_small_users=True"):
        split_by_session(few)
    assert split_by_session(few, drop_small_users=True).users("train") == ("a", "c")
    with pytest.raises(SplitError, match="cannot be negative"):
        split_by_session(corpus, val=-1)
    with pytest.raises(SplitError, match="nothing is left to train on"):
        split_by_session(few[:1], val=3, drop_small_users=True)


def test_by_fraction_the_kao_protocol(corpus):
    split = split_by_fraction(corpus)
    assert split.users("train") == split.users("val") == ("a",) and split.users("test") == ("b", "c")
    for first, second in zip(split.train, split.val):
        assert first.session is second.session and first.stop == second.start and second.stop == second.session.n_samples
        assert second.n_samples == int(second.session.n_samples * .1)
    assert all(p == whole(p.session) for p in split.test) and len(split.test) == 8
    assert split_by_fraction(corpus, train_users="b").users("test") == ("a", "c")
    assert split_by_fraction(corpus, test_users=["a"]).users("train") == ("b", "c")
    assert split_by_fraction(corpus, train_users=["a", "b", "c"], test_users=()).test == ()
    assert split_by_fraction(corpus, train_users="c", test_users="b").users("test") == ("b",)
    with pytest.raises(SplitError, match="user a is in train and in test"):
        split_by_fraction(corpus, train_users=["a", "b"], test_users="a")
    with pytest.raises(SplitError, match=r"test_users=\(\)"):
        split_by_fraction([s for s in corpus if s.user == "a"])
    for fraction in (0, 1, -.1, float("nan")):
        with pytest.raises(SplitError, match="between 0 and 1"):
            split_by_fraction(corpus, val_fraction=fraction)


def test_the_cut_of_the_kao_stand_in(corpus):
    early, late = cut_session(replace(corpus[0], n_samples=240078), .1)
    assert (early.stop, late.start, late.stop) == (216071, 216071, 240078)              # as its report counts
    assert cut_session(replace(corpus[0], n_samples=100), .29)[1].n_samples == 29         # 100 * 0.29 is 28.999999999999996
    with pytest.raises(SplitError, match="less than one sample"):
        cut_session(replace(corpus[0], n_samples=9), .1)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=st.tuples(st.integers(0, 30), st.integers(1, 20)), b=st.tuples(st.integers(0, 30), st.integers(1, 20)))
def test_overlap_means_a_common_sample(corpus, a, b):
    first, second = (Part(corpus[0], start, start + n) for start, n in (a, b))
    common = set(range(first.start, first.stop)) & set(range(second.start, second.stop))
    assert bool(find_overlaps([first], [second])) == bool(common)
    assert find_overlaps([first], [Part(corpus[1], second.start, second.stop)]) == []


def test_a_leak_names_session_user_and_both_ranges(corpus):
    split = Split("mine", (Part(corpus[0], 0, 100),), (Part(corpus[0], 99, 150),), (whole(corpus[4]),), (("train", "val"), ("train", "test")))
    message = (r"split mine leaks: session a-3 of user a is in train \(0-100\) and in val \(99-150\); user a is in train and in val")
    with pytest.raises(SplitError, match=message):
        split.check()
    copied = replace(corpus[0], path=corpus[0].path.with_name("copy.hdf5"))
    assert len(find_leaks(replace(split, val=(), test=(whole(copied),)))) == 2          # a copied file is the same recording
    with pytest.raises(SplitError, match="session a-3 of user a is given twice .*copy.hdf5"):
        group_by_user([*corpus, copied])


@pytest.mark.parametrize("start, stop", [(-1, 5), (5, 5), (6, 5), (0, 10**9)])
def test_a_part_outside_its_session_is_refused(corpus, start, stop):
    with pytest.raises(SplitError, match="session a-3: samples"):
        Part(corpus[0], start, stop)


def test_the_table_counts_every_press_once(corpus):
    rows = split_by_fraction(corpus).table()
    assert [r["role"] for r in rows] == ["train"] * 4 + ["val"] * 4 + ["test"] * 8
    assert set(rows[0]) == {"role", "user", "session", "start", "stop", "seconds", "presses"}
    between = 12 * 12 - sum(r["presses"] for r in rows)                                   # presses in the 5 ms between two parts
    assert 0 <= between <= 1 and rows[-1]["presses"] == 12


def test_the_stand_in_is_split_as_its_report_says(shared, tmp_path):
    from semgbook.wristbands import convert_kao
    folder = shared("data/kao_standin")
    made = convert_kao([folder / "subject1.csv.gz", folder / "subject2.csv.gz"], tmp_path)
    split = make_split("fraction", open_corpus(tmp_path))
    rows = split.table()
    assert len(made) == 2 and [(r["role"], r["user"], r["start"], r["stop"]) for r in rows] == [
        ("train", "subject1", 0, 216071), ("val", "subject1", 216071, 240078), ("test", "subject2", 0, 119997)]
    assert sum(r["presses"] for r in rows) == 2956 + 1348
