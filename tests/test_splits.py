"Who trains, validates and tests: the rules for any corpus, their promises, the guard against leaks, and what weights have seen."
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semgbook.session import open_corpus, write_session
from semgbook.splits import (Lineage, Part, Split, SplitError, accepted_leaks, cut_session, find_leaks, find_lineage_leaks, find_overlaps, group_by_user,
                             hash_order, saw_part, seen_part, split_by_fraction, split_by_leave_users_out, split_by_session, split_by_third_user, split_by_user, whole)

RULES = {"user": split_by_user, "session": split_by_session, "fraction": split_by_fraction, "leave_users_out": split_by_leave_users_out,
         "third_user": split_by_third_user}
OPTIONS = {"user": {"val_users": "b", "test_users": ["c"]}, "session": {"val": 1, "test": 1}, "fraction": {"val_fraction": .2},
           "leave_users_out": {"fold": 1, "folds": 3}, "third_user": {"val_user": "c"}}  # one call of every rule


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


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_keeps_its_promises_in_any_order_of_files(rule, corpus):
    split = RULES[rule](corpus, **OPTIONS[rule])
    assert split.name == rule and split.check() is split and find_leaks(split) == []
    for first, second in split.apart:
        assert not set(split.users(first)) & set(split.users(second))
    rng = np.random.default_rng(1)
    for _ in range(3):
        shuffled = [corpus[i] for i in rng.permutation(len(corpus))]
        assert RULES[rule](shuffled, **OPTIONS[rule]).table() == split.table()
    assert all(split.roles().values())
    seen = np.concatenate([np.arange(p.start, p.stop) + 10_000 * corpus.index(p.session) for parts in split.roles().values() for p in parts])
    assert len(seen) == len(set(seen.tolist()))                                       # by brute force: no sample has two roles


@pytest.mark.parametrize("rule", RULES)
def test_nothing_to_split_is_refused(rule):
    with pytest.raises(SplitError, match="no sessions to split"):
        RULES[rule]([], **OPTIONS[rule])


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
    lent = split_by_fraction(corpus, test_users="c", val_users="a")
    assert lent.users("val") == ("a",) and lent.users("train") == ("a", "b") and lent.val == tuple(p for p in split_by_fraction(corpus, test_users="c").val if p.session.user == "a")
    assert all(p.stop == p.session.n_samples for p in lent.train if p.session.user == "b") and all(p.stop < p.session.n_samples for p in lent.train if p.session.user == "a")
    with pytest.raises(SplitError, match="val_users c do not train"): split_by_fraction(corpus, test_users="c", val_users=["a", "c"])
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
    split = split_by_fraction(open_corpus(tmp_path))
    rows = split.table()
    assert len(made) == 2 and [(r["role"], r["user"], r["start"], r["stop"]) for r in rows] == [
        ("train", "subject1", 0, 216071), ("val", "subject1", 216071, 240078), ("test", "subject2", 0, 119997)]
    assert sum(r["presses"] for r in rows) == 2956 + 1348


def test_a_promise_holds_in_either_order_of_the_pair(corpus):
    split = Split("mine", (whole(corpus[0]),), (), (whole(corpus[1]),), (("test", "train"),))
    assert find_leaks(split) == ["user a is in train and in test"]


# --- strangers -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def fake(corpus):
    "A session of any name and user, without a file of its own."
    return lambda user, name, n=400, **more: replace(corpus[0], user=user, name=name, path=Path("corpus") / f"{name}.hdf5", n_samples=n, **more)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(users=st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=3, max_size=12), data=st.data())
def test_over_all_folds_everybody_is_the_stranger_once(fake, users, data):
    folds = data.draw(st.integers(3, len(users)))
    sessions = data.draw(st.permutations([fake(u, f"{u}-{i}") for u in users for i in range(2)]))
    made = [split_by_leave_users_out(sessions, fold, folds) for fold in range(folds)]
    for role in ("test", "val"):
        assert sorted(sum((s.users(role) for s in made), ())) == sorted(users)
    assert all(sum(map(len, s.roles().values())) == 2 * len(users) and not find_leaks(s) for s in made)
    assert made == [split_by_leave_users_out(sorted(sessions, key=lambda s: s.name), fold, folds) for fold in range(folds)]


@given(people=st.sets(st.text("abcdefgh", min_size=1, max_size=3), min_size=2, max_size=12), newcomer=st.text("ijk", min_size=1, max_size=3), data=st.data())
def test_a_newcomer_moves_nobody(people, newcomer, data):
    order = hash_order(data.draw(st.permutations(sorted(people))), "folds")
    assert sorted(order) == sorted(people) and [user for user in hash_order([newcomer, *people], "folds") if user != newcomer] == order


def test_impossible_folds_and_too_few_people_are_refused(corpus):
    for fold, folds in ((0, 2), (3, 3), (-1, 3), (0, 4), (0, 3.0)):
        with pytest.raises(SplitError, match="cannot be made of 3 users"):
            split_by_leave_users_out(corpus, fold, folds)
    with pytest.raises(SplitError, match="third_user needs a person for each role and has a, b; .*rule fraction"):
        split_by_third_user([s for s in corpus if s.user != "c"])
    with pytest.raises(SplitError, match="third_user needs a person for each role"):
        split_by_third_user(corpus, train_users=["a", "b"], test_users="c")
    with pytest.raises(SplitError, match="user a is in train and in val"):
        split_by_third_user(corpus, train_users=["a", "b"], val_user="a")


def test_the_third_person_is_neither_trained_nor_tested_on(corpus):
    def users(**options): return [split_by_third_user(corpus, **options).users(role) for role in ("train", "val", "test")]
    assert users() == [("a",), ("b",), ("c",)] and users(test_users="a") == [("b",), ("c",), ("a",)]
    assert users(val_user="a") == [("b",), ("a",), ("c",)] and users(train_users="c", val_user="b") == [("c",), ("b",), ("a",)]


# --- what weights have seen ------------------------------------------------------------------------

def test_a_lineage_survives_json_and_refuses_what_it_does_not_know(corpus):
    one = Lineage((("a", "x"), ("a", "y", 0, 5, 9)), (("b", "z"),), ("c",), ("d",), "emg2qwerty", "unsure", ("first",), ("a leak",))
    assert all(getattr(one, f.name) for f in fields(Lineage))                                     # every field is in this test
    for lineage in (one, Lineage()):
        assert Lineage.from_dict(json.loads(json.dumps(lineage.to_dict()))) == lineage
    with pytest.raises(SplitError, match="unknown field seen"):
        Lineage.from_dict({**one.to_dict(), "seen": []})
    for bad, message in (({"users": "ada"}, "field users is 'ada'; it must be a list of texts"), ({"trained": [["a"]]}, "is not a recording"),
                         ({"trained": ["ab"]}, "is not a recording"), ({"selected": [["a", "x", 0, 1, None]]}, "is not a recording"),
                         ({"everyone_but": [1]}, "everyone_but"), ({"unknown": None}, "must be text"), ({"leaks": None}, "leaks")):
        with pytest.raises(SplitError, match=message):
            Lineage.from_dict(bad)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=st.tuples(st.integers(0, 150), st.integers(1, 50)), b=st.tuples(st.integers(0, 150), st.integers(1, 50)))
def test_stretches_leak_unless_they_are_known_to_lie_apart(corpus, a, b):
    first, second = (Part(corpus[0], start, start + n) for start, n in (a, b))
    entries = [seen_part(first)]
    assert saw_part(entries, second) == bool(find_overlaps([first], [second]))
    other = replace(second, session=replace(corpus[0], n_samples=corpus[0].n_samples + 1))       # another cut or rate of the same recording:
    assert saw_part(entries, other) and saw_part([seen_part(whole(corpus[0]))], second)          # sample numbers say nothing
    assert not saw_part(entries, replace(second, session=corpus[1]))


def test_each_kind_of_lineage_leak_is_found_and_nothing_else(corpus):
    by = {s.name: whole(s) for s in corpus}
    split = Split("mine", (by["a-0"],), (by["a-1"],), (by["b-0"],))
    strangers = replace(split, apart=(("train", "test"), ("val", "test")))
    cases = [
        (Lineage(), split, []), (Lineage((("a", "a-0"), ("b", "b-1")), (("b", "b-1"), ("a", "a-1"))), split, []),
        (Lineage((("b", "b-0"),)), split, ["session b-0 of user b is in test, and the starting weights were trained on it"]),
        (Lineage((("a", "a-1"),), steps=("x", "y")), split, ["session a-1 of user a is in val, and the starting weights (x > y) were trained on it"]),
        (Lineage(selected=(("b", "b-0"),)), split, ["session b-0 of user b is in test, and the starting weights were chosen by it"]),
        (Lineage((("b", "b-1"),)), strangers, ["user b is in test as a new person, and was in train of the starting weights"]),
        (Lineage(selected=(("b", "b-1"),)), strangers, ["user b is in test as a new person, and was in val of the starting weights"]),
        (Lineage((("a", "a-3"),), (("a", "a-1"),)), strangers, []),                                # the same validation twice, and more of a training person
        (Lineage(users=("b",)), strangers, ["user b is in test, and the starting weights were trained on this user, on sessions that are not listed"]),
        (Lineage((("b", "b-1"),), users=("b",)), strangers, ["user b is in test, and the starting weights were trained on this user, on sessions that are not listed"]),
        (Lineage(users=("a",)), split, ["user a is in val, and the starting weights were trained on this user, on sessions that are not listed"]),
        (Lineage(everyone_but=("a",)), split, ["user b is in test, and the starting weights were trained on this user, on sessions that are not listed"]),
        (Lineage(everyone_but=("a",), corpus="emg2qwerty"), split, []),                            # these people are of another corpus
        (Lineage(unknown="found on a disk"), split, ["it is not known what the starting weights were trained on (found on a disk), so no part of the test can be called new"]),
    ]
    for lineage, some, wanted in cases:
        assert find_lineage_leaks(some, lineage) == wanted
        assert bool(wanted) == bool(accepted_leaks(some, lineage))
        if not wanted:
            assert some.check(lineage) is some
            continue
        with pytest.raises(SplitError) as error:
            some.check(lineage)
        assert all(sentence in str(error.value) for sentence in wanted) and "allow_leaks=True" in str(error.value)
        assert some.check(lineage, allow_leaks=True) is some
    broken = replace(split, test=(by["a-0"],))
    with pytest.raises(SplitError, match="is in train .* and in test"):
        broken.check(Lineage(), allow_leaks=True)                                                 # an override is for the weights, not for the split


def test_lineage_grows_by_what_was_trained_on_and_never_forgets(corpus):
    split = split_by_fraction(corpus, test_users="c", train_users="a")
    first = Lineage().after(split, "one")
    assert first.steps == ("one",) and not first.leaks and len(first.trained) == len(first.selected) == 4
    assert all(len(e) == 5 for e in first.trained + first.selected)
    assert find_lineage_leaks(split, first) == []                                                 # once more on the same split is no leak
    assert find_lineage_leaks(replace(split, test=split.train, train=split.val, val=(), apart=()), first)
    swapped = split_by_fraction(corpus, train_users="b", test_users="a")
    with pytest.raises(SplitError, match="user a is in test as a new person"):
        swapped.check(first)
    second = first.after(swapped, "two")
    third = second.after(split_by_session([s for s in corpus if s.user == "c"]), "three")
    assert len(second.leaks) == len(find_lineage_leaks(swapped, first)) > 0 and third.leaks == second.leaks and third.steps == ("one", "two", "three")
    assert set(first.trained) < set(second.trained) < set(third.trained) and Lineage(unknown="x").after(split, "y").unknown == "x"
