"The splits that have a name: published protocols drawn again and fingerprinted, published weights, less data, and rules by their names."
import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semgbook import protocols
from semgbook.protocols import (COURSE_STAMPS, COURSE_USER, HELD_OUT_USERS, PUBLISHED_DIGESTS, PUBLISHED_LINEAGES, SPLIT_RULES, UNUSED_USERS, check_published,
                                find_missing, limit_minutes, list_digest, make_split, published_lineage, read_published_split, regenerate_published,
                                rule_options, split_by_course, split_by_emg2qwerty_generic, split_by_emg2qwerty_user, split_by_users_18_6_6)
from semgbook.session import Session
from semgbook.splits import Lineage, Split, SplitError, find_lineage_leaks, seen_part, split_by_session, whole

OPTIONS = {"user": {"val_users": "b", "test_users": ["c"]}, "session": {"val": 1, "test": 1}, "fraction": {"val_fraction": .2},
           "leave_users_out": {"fold": 1, "folds": 3}, "third_user": {"val_user": "c"}}  # one call of every rule that any corpus can take
PUBLISHED = {"emg2qwerty_generic", "emg2qwerty_user", "course", "users_18_6_6"}          # these need the published one


def fake(user, name, n=400, first_time=1e9):
    "A session of any name and user at 200 Hz, without a file."
    return Session(Path("corpus") / f"{name}.hdf5", name, user, "on_keyboard", 200.0, 4, n, first_time, first_time + (n - 1) / 200, True, (), np.zeros(0), np.zeros(0))


LENGTHS = np.random.default_rng(0).integers(200, 400, 12)
CORPUS = [fake(user, f"{user}-{i}", int(LENGTHS[4 * u + i]), 1e9 + 1000 * i) for u, user in enumerate("abc") for i in range(4)]  # users a, b, c with four sessions each


def names(parts):
    return sorted(p.session.name for p in parts)


# --- rules by their names --------------------------------------------------------------------------

def test_every_rule_is_exercised_here():
    assert set(OPTIONS) | PUBLISHED == set(SPLIT_RULES) and not set(OPTIONS) & PUBLISHED
    for rule, function in SPLIT_RULES.items():
        assert list(inspect.signature(function).parameters)[0] == "sessions" and "sessions" not in rule_options(rule)
        assert function.__name__ == f"split_by_{rule}" and function.__doc__


@pytest.mark.parametrize("rule", OPTIONS)
def test_a_rule_by_its_name_is_the_rule_in_any_order_of_files(rule):
    split = make_split(rule, CORPUS, **OPTIONS[rule])
    assert split.name == rule and split == SPLIT_RULES[rule](CORPUS, **OPTIONS[rule])
    shuffled = [CORPUS[i] for i in np.random.default_rng(1).permutation(len(CORPUS))]
    assert make_split(rule, shuffled, **OPTIONS[rule]) == split


@pytest.mark.parametrize("rule", OPTIONS)
def test_unknown_and_missing_options_are_refused_by_name(rule):
    with pytest.raises(SplitError, match=f"'{rule}' has no option val_userz; it has {next(iter(rule_options(rule)))}"):
        make_split(rule, CORPUS, **OPTIONS[rule], val_userz="a")
    with pytest.raises(SplitError, match="no split rule 'usr'; there are user, session, fraction, leave_users_out, third_user, emg2qwerty_generic"):
        make_split("usr", CORPUS)
    with pytest.raises(SplitError, match="'user' needs val_users, test_users"):
        make_split("user", CORPUS)
    with pytest.raises(SplitError, match="no sessions to split"):
        make_split(rule, [], **OPTIONS[rule])


# --- less data -------------------------------------------------------------------------------------

def samples(parts):
    return {(p.session.name, i) for p in parts for i in range(p.start, p.stop)}


@settings(max_examples=60, deadline=None)
@given(few=st.floats(.001, 1), many=st.floats(.001, 1), seed=st.integers(0, 5), rule=st.sampled_from(["session", "fraction"]))
def test_more_minutes_contain_fewer(few, many, seed, rule):
    split = make_split(rule, CORPUS, **OPTIONS[rule])
    have = sum(p.duration_s for p in split.train) / 60
    few, many = sorted((few * have, many * have))
    small, large = limit_minutes(split, few, seed), limit_minutes(split, many, seed)
    assert samples(small.train) <= samples(large.train) <= samples(split.train)
    for limited, minutes in ((small, few), (large, many)):
        assert abs(sum(p.n_samples for p in limited.train) - 60 * minutes * 200) < 1.01          # to the sample, 200 Hz
        assert sum(p not in split.train for p in limited.train) <= 1                              # whole sessions, the last one cut
        assert {(p.session.name, p.start) for p in limited.train} <= {(p.session.name, p.start) for p in split.train}   # and gives its beginning
        assert (limited.val, limited.test, limited.apart) == (split.val, split.test, split.apart) and limited.notes[-1].startswith("train: ")


def test_limits_are_refused_and_all_is_all():
    split = split_by_session(CORPUS)
    have = sum(p.duration_s for p in split.train) / 60
    assert limit_minutes(split, have).train == split.train
    assert limit_minutes(split, .06, 0).train != limit_minutes(split, .06, 1).train               # the seed chooses
    for minutes in (0, -1, have * 1.01, float("nan")):
        with pytest.raises(SplitError, match="must lie between 0 and the"):
            limit_minutes(split, minutes)
    with pytest.raises(SplitError, match="less than one sample"):
        limit_minutes(split, 1e-6)


# --- the published protocols -----------------------------------------------------------------------

@pytest.fixture(scope="module")
def lists(shared):
    "The published lists: (protocol, role) to (user, session) pairs in their order."
    table = pd.read_csv(shared("data/splits/emg2qwerty_splits.csv"), dtype=str)
    return {key: list(zip(own.user, own.session)) for key, own in table.groupby(["protocol", "split"], sort=False)}


def put_back(kept, drawn, seed):
    "Per user the list before two were drawn from it: the drawn ones at the positions that the generator says."
    rng, before = np.random.RandomState(seed), {}
    for user in sorted(kept, key=int):
        n, rest = len(kept[user]) + 2, iter(kept[user])
        at = dict(zip(rng.choice(n, 2, replace=False), drawn[user]))
        before[user] = [at[i] if i in at else next(rest) for i in range(n)]
    return before


def row_orders(lists, seed):
    "The row order of the corpus' table that the published lists imply, if they were drawn with this seed: held-out users, then the others."
    def by_user(*keys):
        found = {}
        for key in keys:
            for user, session in lists[key]:
                found.setdefault(user, []).append(session)
        return found
    roles = {role: by_user(*((f"user{i}", role) for i in range(8))) for role in ("train", "val", "test")}
    held = put_back(put_back(roles["train"], roles["val"], seed), roles["test"], seed)
    return held, put_back(by_user(("generic", "train")), by_user(("generic", "val")), seed)


def disorder(rows):
    "How far apart in time, counted in sessions, neighbouring rows of a user are."
    total = 0
    for own in rows.values():
        rank = {name: i for i, name in enumerate(sorted(own, key=lambda name: int(name.split("-")[3])))}
        total += sum(abs(rank[a] - rank[b]) for a, b in zip(own, own[1:]))
    return total


@pytest.fixture(scope="module")
def metadata(lists):
    "A table of the corpus: 1,135 rows, users mixed, each user's rows in the order implied by the draw; the unused users' sessions are made up."
    rows = [(user, name) for some in row_orders(lists, protocols.PUBLISHED_SEED) for user, own in some.items() for name in own]
    rows += [(user, f"2021-01-01-160000000{i}-keystrokes-made-up") for i, user in enumerate((*UNUSED_USERS, *UNUSED_USERS[:2]))]
    rng, order = np.random.default_rng(0), {}
    for user in rng.permutation([user for user, _ in rows]):
        order.setdefault(str(user), []).append(len(order))
    turn, queues = rng.permutation([user for user, _ in rows]), {}
    for user, name in rows:
        queues.setdefault(user, []).append(name)
    return pd.DataFrame([(user, queues[user].pop(0)) for user in turn], columns=["user", "session"])


@pytest.fixture(scope="module")
def everything(metadata):
    "All 1,135 sessions, as if they had been opened."
    return [fake(user, name, first_time=float(name.split("-")[3])) for user, name in zip(metadata.user, metadata.session)]


def test_the_draw_fits_the_published_lists_as_no_other_seed_does(lists):
    fits = {seed: [disorder(rows) for rows in row_orders(lists, seed)] for seed in (protocols.PUBLISHED_SEED, *range(60))}
    held, others = fits.pop(protocols.PUBLISHED_SEED)
    assert held < .85 * min(a for a, _ in fits.values()) and others < .85 * min(b for _, b in fits.values())


def test_the_published_lists_are_drawn_again(lists, metadata):
    made = regenerate_published(metadata)
    assert len(metadata) == 1135 and sum(len(pairs) for roles in made.values() for pairs in roles.values()) + 18 == sum(map(len, lists.values())) == 1163
    for protocol, roles in made.items():
        assert all(sorted(pairs) == sorted(lists[protocol, role]) for role, pairs in roles.items())
        assert check_published(protocol, roles, "here") is roles
    numbers = metadata.assign(user=metadata.user.astype(int))                                     # users as numbers or with leading zeros: no difference
    assert regenerate_published(numbers) == regenerate_published(metadata.assign(user=metadata.user.str.zfill(8))) == made
    shuffled = regenerate_published(metadata.sample(frac=1, random_state=0))
    with pytest.raises(SplitError, match=r"protocol generic: the lists from a table are not the published ones: train \(837 sessions.*original order"):
        check_published("generic", shuffled["generic"], "a table")
    assert list_digest(lists["course_89335547", "val"]) == PUBLISHED_DIGESTS["course"][1]


def test_a_table_of_something_else_is_refused():
    with pytest.raises(SplitError, match="fewer than 4 sessions of the held-out users 43037958"):
        regenerate_published(pd.DataFrame({"user": ["1"], "session": ["x"]}))
    rows = [(user, f"{user}-{i}") for user in (*HELD_OUT_USERS, "ada") for i in range(4)]
    with pytest.raises(SplitError, match="user 'ada', where published users are numbers"):
        regenerate_published(pd.DataFrame(rows, columns=["user", "session"]))


def test_published_rules_take_the_published_sessions(lists, metadata, everything, tmp_path):
    split = split_by_emg2qwerty_generic(everything, metadata)
    assert [len(parts) for parts in split.roles().values()] == [837, 192, 16] and [len(split.users(r)) for r in split.roles()] == [96, 96, 8]
    assert split.users("train") == split.users("val") and set(split.users("test")) == set(HELD_OUT_USERS) and not split.notes
    for i, user in enumerate(HELD_OUT_USERS):
        own = split_by_emg2qwerty_user(everything, user, metadata)
        assert own == split_by_emg2qwerty_user(everything[::-1], i, metadata) and own.users("test") == (user,)
        assert names(own.test) == sorted(name for _, name in lists[f"user{i}", "test"])
    assert [len(parts) for parts in split_by_course(everything).roles().values()] == [16, 1, 1]
    metadata.assign(duration_mins=1, quality_check_tags="[]").to_csv(tmp_path / "metadata.csv", index=False)
    beside = [replace(s, path=tmp_path / s.path.name) for s in everything]
    found = split_by_emg2qwerty_generic(beside)
    assert names(found.val) == names(split.val)
    with pytest.raises(SplitError, match="user=8 is not a held-out user; give 0 to 7, or one of 43037958"):
        split_by_emg2qwerty_user(everything, 8, metadata)
    with pytest.raises(SplitError, match="protocol generic is drawn from metadata.csv, which is not beside the sessions; .*source="):
        split_by_emg2qwerty_generic(everything)


def test_a_part_of_the_corpus_is_refused_or_noted(metadata, everything):
    here = [s for s in everything if s.user == COURSE_USER]
    with pytest.raises(SplitError, match=r"not complete here \(train: 16 of 837 published sessions; val: 2 of 192.*; test: 0 of 16.*missing='note'"):
        split_by_emg2qwerty_generic(here, metadata)
    part = split_by_emg2qwerty_generic(here, metadata, missing="note")
    assert len(part.train) == 16 and part.notes == ("train: 16 of 837 published sessions", "val: 2 of 192 published sessions", "test: 0 of 16 published sessions")
    absent = find_missing(regenerate_published(metadata)["generic"], here)
    assert list(absent.columns) == ["role", "user", "session"] and dict(absent.role.value_counts()) == {"train": 821, "val": 190, "test": 16}
    with pytest.raises(SplitError, match="nothing is left to train on"):
        split_by_emg2qwerty_user(here, 0, metadata, missing="note")
    with pytest.raises(SplitError, match="missing='skip' must be 'refuse' or 'note'"):
        split_by_course(here, missing="skip")
    test = [s for s in here if str(COURSE_STAMPS["test"][0]) in s.name]
    with pytest.raises(SplitError, match=rf"split course is not complete here \(test: 0 of 1 published sessions; .*{COURSE_STAMPS['test'][0]}"):
        split_by_course([s for s in here if s not in test])
    with pytest.raises(SplitError, match="protocol course: the lists from the names of the session files are not the published ones"):
        split_by_course([replace(s, name=s.name + "x") if s in test else s for s in here])


def test_eighteen_six_and_six_are_pinned(metadata, everything):
    split = split_by_users_18_6_6(everything)
    assert [len(split.users(role)) for role in split.roles()] == [18, 6, 6] and [len(p) for p in split.roles().values()] == [216, 72, 72]
    assert not {user for role in split.roles() for user in split.users(role)} & {*HELD_OUT_USERS, COURSE_USER}
    assert split == split_by_users_18_6_6(everything[::-1], metadata.sample(frac=1, random_state=1))
    some = [s for s in everything if int(s.user) % 2]
    with pytest.raises(SplitError, match="protocol users_18_6_6: the lists from the session headers are not the published ones"):
        split_by_users_18_6_6(some)
    with pytest.raises(SplitError, match="users_18_6_6 is not complete here"):
        split_by_users_18_6_6(some, metadata)
    own = [fake(f"p{i}", f"p{i}-{k}") for i in range(40) for k in range(2 if i < 35 else 1)]
    chosen = split_by_users_18_6_6(own, pinned=False)
    assert sum(len(parts) for parts in chosen.roles().values()) == 60                             # only people with two sessions
    with pytest.raises(SplitError, match="needs 30 users outside the published test sets and has 29"):
        split_by_users_18_6_6([s for s in own if int(s.user[1:]) < 29], pinned=False)


def write_yaml(path, roles, style):
    "A published split file, in one of the ways such files are written."
    lines = ["# a split", "defaults:", "  - _self_", "user: someone", "dataset:", "  root: data"]
    for role, pairs in roles.items():
        lines += ["", f"  {role}:{'' if pairs else ' []'}"]
        for user, name in pairs:
            lines += {"block": [f"    - user: {user}", f"      session: {name}"], "flat": [f"  - session: '{name}'   # flat", f"    user: \"{user}\""],
                      "flow": [f"    - {{user: {user}, session: {name}}}"], "split": ["    -", f"      session: {name}", f"      user: {user}"]}[style]
    path.write_text("\n".join([*lines, "  batch: 3", "trainer:", "  session: not-of-the-data", ""]), encoding="utf-8")
    return path


@pytest.mark.parametrize("style", ["block", "flat", "flow", "split"])
def test_split_files_are_read_in_every_usual_shape(style, tmp_path):
    roles = {"train": [("12", "2021-a-keystrokes-dca-study@1-0e"), ("7", "b")], "val": [], "test": [("12", "c")]}
    path = write_yaml(tmp_path / "x.yaml", roles, style)
    assert read_published_split(path) == roles
    text = path.read_text()
    for broken in (text.replace("session:", "sesion:", 1), text.replace("val: []", "val: ${dataset.test}"), text.replace("  test:", "  text:\n  test:\n    - user: 5")):
        assert broken != text
        path.write_text(broken)
        with pytest.raises(SplitError, match=r"x.yaml, line \d+: .* where one user and one session were expected"):
            read_published_split(path)
    for nothing in ("", "dataset:\n  train: []\n", "train:\n  - {user: 1, session: x}\n"):
        path.write_text(nothing)
        with pytest.raises(SplitError, match="there is no dataset with train, val and test"):
            read_published_split(path)
    with pytest.raises(SplitError, match="cannot be read"):
        read_published_split(tmp_path / "none.yaml")


def test_a_split_file_stands_in_for_the_table(lists, everything, metadata, tmp_path):
    roles = {role: lists["generic", role] for role in ("train", "val", "test")}
    path = write_yaml(tmp_path / "generic.yaml", roles, "block")
    assert split_by_emg2qwerty_generic(everything, path) == split_by_emg2qwerty_generic(everything, metadata)
    with pytest.raises(SplitError, match="protocol user0: the lists from .*generic.yaml are not the published ones"):
        split_by_emg2qwerty_user(everything, 0, str(path))


# --- the published checkpoints ---------------------------------------------------------------------

@pytest.mark.parametrize("name", PUBLISHED_LINEAGES)
def test_a_published_lineage_survives_json(name):
    lineage = published_lineage(name)
    assert lineage.steps[-1] == name and Lineage.from_dict(json.loads(json.dumps(lineage.to_dict()))) == lineage


@pytest.fixture(scope="module")
def course():
    "The course split over made-up files with the time stamps of its sessions."
    sessions = [fake(COURSE_USER, f"2021-06-02-{stamp}-keystrokes-x") for stamps in COURSE_STAMPS.values() for stamp in stamps]
    roles = [[s for s in sessions if int(s.name.split("-")[3]) in stamps] for stamps in COURSE_STAMPS.values()]
    return Split("course", *(tuple(map(whole, some)) for some in roles)).check()


def test_the_course_subject_cannot_start_from_the_generic_checkpoint(course):
    generic = PUBLISHED_LINEAGES["emg2qwerty-generic"]
    assert course.check(Lineage()) is course
    with pytest.raises(SplitError, match="user 89335547 is in test, and the starting weights .emg2qwerty-generic. were trained on this user"):
        course.check(generic)
    anonymous = replace(course, test=tuple(replace(p, session=replace(p.session, name="mine")) for p in course.test), val=())
    assert find_lineage_leaks(anonymous, generic)                                                 # renaming the file does not help, nor does another user
    assert find_lineage_leaks(replace(course, val=(), test=tuple(replace(p, session=replace(p.session, user="me")) for p in course.test)), generic)
    assert len(generic.after(course, "tuned").after(split_by_session([fake("kao", f"k{i}") for i in range(3)]), "kao").leaks) == 2
    for user in (*HELD_OUT_USERS, *UNUSED_USERS, "05775561", "subject1"):
        alone = split_by_session([fake(user, f"2020-12-17-160000000{i}-keystrokes" if user.isdigit() else f"kao-{i}") for i in range(3)])
        assert alone.check(generic) is alone


def test_personal_checkpoints_are_known_by_person_or_exactly(everything, metadata, lists):
    user0, generic = split_by_emg2qwerty_user(everything, 0, metadata), split_by_emg2qwerty_generic(everything, metadata)
    for kind in ("finetuned", "randominit"):
        name = f"emg2qwerty-{kind}-user0"
        assert len(find_lineage_leaks(user0, published_lineage(name))) == 2                        # test and val: which sessions it saw is not known
        exact = published_lineage(name, user0)
        assert user0.check(exact) is user0 and exact.trained == tuple(map(seen_part, user0.train)) and exact.steps[-1] == name and not exact.leaks
        turned = replace(user0, train=user0.test, test=user0.train)
        assert len(find_lineage_leaks(turned, exact)) == 10
        assert bool(find_lineage_leaks(generic, exact)) and (exact.everyone_but is None) == (kind == "randominit")
    course = split_by_course(everything)
    exact = published_lineage("emg2qwerty-generic", generic)
    assert generic.check(exact) is generic and len(exact.trained) == 837
    assert find_lineage_leaks(course, exact) == [f"session {p.session.name} of user {COURSE_USER} is in {role}, and the starting weights (emg2qwerty-generic) were trained on it"
                                                 for role, parts in (("test", course.test), ("val", course.val)) for p in parts]
    assert len(PUBLISHED_LINEAGES) == 17
    with pytest.raises(SplitError, match="protocol user1: the lists from split emg2qwerty_user are not the published ones"):
        published_lineage("emg2qwerty-finetuned-user1", user0)
    with pytest.raises(SplitError, match="holds only a part of session"):
        published_lineage("emg2qwerty-finetuned-user0", replace(user0, train=(replace(user0.train[0], stop=9), *user0.train[1:])))
    with pytest.raises(SplitError, match="no published checkpoint 'generic'"):
        published_lineage("generic")
