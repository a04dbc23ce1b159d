"Windows and labels: every case of the golden file, and properties that hold for any session."
import json

import numpy as np
import pytest
import torch

from semgbook.charset import FINGERS, QWERTY
from semgbook.repro import make_generator
from semgbook.session import open_session, read_signal, read_times, write_session
from semgbook.splits import Part, whole
from semgbook.store import SignalStore
from semgbook.windows import (LabelTable, WindowError, WindowIndex, WindowLoader, WindowSet, WindowSpec, balanced_order, part_labels,
                              press_bounds, run_ahead, session_labels, user_turns)


# ---------------------------------------------------------------------------------------------------- golden cases
@pytest.fixture(scope="module")
def golden(shared):
    "The golden cases, their session and the store that holds it."
    cases = json.loads(shared("golden/labels_windows.json").read_text())
    session = open_session(shared("golden/labels_windows.hdf5"))
    return cases, session, SignalStore([session], "ram")


def spec_of(case):
    left, right = case["padding"]
    return WindowSpec(case["window_length"], left, right, case.get("stride"))


def check_window(golden, index, case, draw=0):
    cases, session, store = golden
    windows = WindowSet(store, index)
    plan = index.plan([case["index"]], draws=draw)
    assert [plan.read_start[0], plan.read_stop[0]] == case["read"]
    assert [plan.core_start[0], plan.core_stop[0]] == case["core"]
    ends = [read_times(session, i, i + 1)[0] for i in (plan.core_start[0], plan.core_stop[0] - 1)]
    assert ends == [case["t_first"], case["t_last"]]
    labels, lengths = index.labels(plan)
    assert labels[0].tolist() == case["labels"] and lengths[0] == len(case["labels"])
    assert QWERTY.text_of_labels(labels[0]) == case["text"]
    batch = windows.batch([case["index"]], draws=draw)
    sums = batch.signal[0].double().sum((0, 2)) / cases["sample_unit"]
    assert sums.tolist() == [case["sum_left"], case["sum_right"]]
    assert batch.labels[0].tolist() == case["labels"] and batch.starts[0] == case["read"][0]
    assert (max(int(batch.signal_lengths[0]) - 64, -16)) // 16 + 1 == max(case["frames"] or 0, 0)


def test_golden_windows(golden):
    n = 0
    for case in golden[0]["window_sets"]:
        if case["window_length"] is not None and case["window_length"] > golden[0]["n_samples"]:
            with pytest.raises(WindowError, match="no part is as long"):
                WindowIndex([whole(golden[1])], spec_of(case), QWERTY)
            continue
        index = WindowIndex([whole(golden[1])], spec_of(case), QWERTY)
        assert len(index) == case["n_windows"]
        for window in case["windows"]:
            check_window(golden, index, window)
            assert index.text(window["index"]) == window["text"]
            n += 1
    assert n == 71


def test_golden_jitter(golden):
    n = 0
    for case in golden[0]["jitter_sets"]:
        index = WindowIndex([whole(golden[1])], spec_of(case), QWERTY, jitter=True)
        for window in case["windows"]:
            expected = window["draw_range"][1] if window["draw_range"] else 0
            assert index.draw_limits([window["index"]])[0] == expected
            check_window(golden, index, window, window["draw"] or 0)
            n += 1
    assert n == 145


def test_golden_whole_session(golden):
    cases, session, _ = golden
    labels, samples = part_labels(whole(session), QWERTY)
    expected = cases["whole_session"]
    assert labels.tolist() == expected["labels"] and QWERTY.text_of_labels(labels) == expected["text"]
    times = read_times(session)
    presses = np.array(expected["timestamps"])
    assert (times[samples] >= presses).all() and (times[np.maximum(samples - 1, 0)] < presses)[samples > 0].all()
    everything, first, past = session_labels(session, QWERTY)
    assert everything.tolist() == cases["all_keystrokes_without_limits"]["labels"]
    outside = np.ones(len(everything), bool)
    outside[np.flatnonzero((past > 0) & (first < session.n_samples))] = False
    assert outside.sum() == len(everything) - len(labels)


def test_golden_intervals(golden):
    "The press times behind the bounds: an interval of times picks the same presses as the golden file."
    cases, session, _ = golden
    keep = QWERTY.keep_of_keys(session.keys)
    labels, presses = QWERTY.labels_of_keys(session.keys), session.press_times[keep]
    for case in cases["intervals"]:
        first, past = press_bounds(np.array([case["start"], case["end"]]), presses)
        inside = (past > 0) & (first < 2)
        assert labels[inside].tolist() == case["labels"] and presses[inside].tolist() == case["timestamps"]
        assert QWERTY.text_of_labels(labels[inside]) == case["text"]


def test_golden_errors(golden):
    for case in golden[0]["errors"]:
        if case["window_length"] is not None and case["window_length"] > golden[0]["n_samples"]:
            with pytest.raises(WindowError): WindowIndex([whole(golden[1])], spec_of(case), QWERTY)
            continue
        index = WindowIndex([whole(golden[1])], spec_of(case), QWERTY)
        for bad in (case["index"], len(index), -1):
            with pytest.raises(IndexError, match="no window"): index.plan([bad])


def test_golden_collate(golden):
    case = golden[0]["collate"]
    batch = WindowSet(golden[2], WindowIndex([whole(golden[1])], spec_of(case), QWERTY)).batch(case["indices"])
    assert batch.labels.T.tolist() == case["targets_time_first"]
    assert batch.label_lengths.tolist() == case["target_lengths"]
    assert ((batch.signal_lengths - 64) // 16 + 1).tolist() == case["input_lengths"]
    assert (batch.signal.shape[1] - 64) // 16 + 1 == case["inputs_shape"][0]
    for row, n in zip(batch.signal, batch.signal_lengths): assert not row[n:].any()


def test_golden_other_condition(golden, shared):
    session = open_session(shared("golden/" + golden[0]["other_condition"]["file"]))
    with pytest.raises(WindowError, match="on_table.*leave the session out"):
        WindowIndex([whole(session)], WindowSpec(100), QWERTY)
    with pytest.raises(WindowError): part_labels(whole(session), QWERTY)


# -------------------------------------------------------------------------------------------------- own properties
def make_session(folder, seed, n_samples=5000, n_keys=60, name=None, user="ada", irregular=True):
    "Presses everywhere: before, after, on samples and between; a clock that repeats and jumps; the sample number in electrode 0."
    rng = np.random.default_rng(seed)
    steps = rng.choice([0, 0.0005, 0.0005, 0.0005, 0.003] if irregular else [0.0005], n_samples)
    times = 1.7e9 + np.cumsum(steps)
    presses = rng.uniform(times[0] - 0.1, times[-1] + 0.1, n_keys)
    on = rng.random(n_keys) < 0.5
    presses[on] = rng.choice(times, on.sum())
    presses = np.sort(presses)
    signal = rng.normal(size=(n_samples, 2, 4)).astype(np.float32)
    signal[:, 0, 0] = np.arange(n_samples)
    keys = [str(k) for k in rng.choice(list("abcXYZ;,") + ["Key.space", "Key.shift", "Key.shift_r", "Key.ctrl"], n_keys)]
    name = name or f"s{seed}"
    path = write_session(folder / f"{name}.hdf5", signal, times, keys, presses, presses + 0.01, name=name, user=user)
    return open_session(path)


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return [make_session(folder, k, n, user=u) for k, n, u in ((0, 5000, "cleo"), (1, 7001, "ada"), (2, 900, "ada"), (3, 4321, "ben"))]


@pytest.mark.parametrize("spec", [WindowSpec(700, 100, 30), WindowSpec(64, 0, 0, 17), WindowSpec(1, 3, 2), WindowSpec(899, 5000, 5000), WindowSpec(300, 9, 9, 1000)])
@pytest.mark.parametrize("jitter", [False, True])
def test_labels_equal_the_literal_rule(sessions, spec, jitter):
    index = WindowIndex([whole(s) for s in sessions], spec, QWERTY, jitter)
    plan = index.plan(np.arange(len(index)), make_generator(3, "test"))
    labels, lengths = index.labels(plan)
    for k in range(0, len(index), max(len(index) // 60, 1)):
        session = index.sessions[plan.sessions[k]]
        times = read_times(session)
        start, end = times[plan.core_start[k]], times[plan.core_stop[k] - 1]
        keys = [key for key, t in zip(session.keys, session.press_times) if start <= t <= end]
        expected = QWERTY.labels_of_keys(keys)
        assert np.array_equal(labels[k, :lengths[k]], expected) and not labels[k, lengths[k]:].any()


def test_windows_stay_inside_their_part(sessions):
    parts = [Part(sessions[0], 10, 2000), Part(sessions[1], 500, 501 + 600), Part(sessions[0], 2000, 4999)]
    index = WindowIndex(parts, WindowSpec(600, 250, 90, 200), QWERTY, jitter=True)
    assert index.counts.tolist() == [(1990 - 600) // 200 + 1, 1, (2999 - 600) // 200 + 1]
    which = np.repeat(np.arange(3), index.counts)
    for epoch in range(20):
        plan = index.plan(np.arange(len(index)), make_generator(epoch))
        for k, part in enumerate(parts):
            mine = which == k
            assert plan.read_start[mine].min() >= part.start and plan.read_stop[mine].max() <= part.stop
        assert (plan.core_stop - plan.core_start == 600).all()
        assert (np.minimum(plan.core_start - plan.read_start, 250) == plan.core_start - plan.read_start).all()
    assert [index.sessions[i].name for i in plan.sessions[[0, -1]]] == ["s0", "s0"] and len(index.sessions) == 2


def test_jitter_law(sessions):
    "Even on [0, min(stride, left over)), nothing else, and nothing at all where nothing is left."
    index = WindowIndex([Part(sessions[0], 0, 1005)], WindowSpec(500, 0, 0, 250), QWERTY, jitter=True)
    assert index.draw_limits([0, 1, 2]).tolist() == [250, 250, 5]
    shifts = np.stack([index.plan([0, 2], make_generator(k)).core_start - [0, 500] for k in range(3000)])
    assert shifts[:, 0].min() == 0 and shifts[:, 0].max() == 249 and set(shifts[:, 1]) == set(range(5))
    assert abs(shifts[:, 0].mean() - 124.5) < 6 and np.bincount(shifts[:, 1]).min() > 500
    full = WindowIndex([Part(sessions[0], 0, 1000)], WindowSpec(500), QWERTY, jitter=True)
    assert full.plan([1], make_generator(0)).core_start[0] == 500
    for bad in (-1, 250):
        with pytest.raises(WindowError, match="shift"): index.plan([0], draws=bad)
    with pytest.raises(WindowError, match="generator"): index.plan([0])


def test_every_press_has_one_window_unless_in_a_gap(sessions):
    session = sessions[1]
    index = WindowIndex([whole(session)], WindowSpec(350), QWERTY)
    plan = index.plan(np.arange(len(index)))
    low, high = index.table.ranges(plan.sessions, plan.core_start, plan.core_stop)
    owners = np.zeros(len(index.table.first), int)
    for a, b in zip(low, high): owners[a:b] += 1
    times, keep = read_times(session), QWERTY.keep_of_keys(session.keys)
    for n, t in zip(owners, session.press_times[keep]):
        touched = sum(times[a] <= t <= times[b - 1] for a, b in zip(plan.core_start, plan.core_stop))
        assert n == touched
    assert (owners == 1).sum() > 30


def test_no_presses_at_all(tmp_path):
    path = write_session(tmp_path / "silent.hdf5", np.zeros((500, 2, 4), np.float32), 1e9 + np.arange(500) / 2000, [], [], [], name="silent", user="ada")
    session = open_session(path)
    windows = WindowSet(SignalStore([session]), WindowIndex([whole(session)], WindowSpec(100), QWERTY))
    batch = windows.batch([0, 3])
    assert batch.labels.shape == (2, 0) and batch.label_lengths.tolist() == [0, 0] and windows.index.text(2) == ""
    assert len(part_labels(whole(session), QWERTY)[0]) == 0


def test_smaller_charset_drops_keys_with_their_times(sessions):
    index = WindowIndex([whole(sessions[0])], WindowSpec(None), FINGERS)
    times = read_times(sessions[0])
    inside = [k for k, t in zip(sessions[0].keys, sessions[0].press_times) if times[0] <= t <= times[-1]]
    assert index.text(0) == "".join({"Key.space": " ", ";": ";"}.get(k, "") for k in inside)


def test_whole_part_windows(sessions):
    parts = [whole(sessions[0]), Part(sessions[1], 100, 200)]
    index = WindowIndex(parts, WindowSpec(None, 40, 40), QWERTY)
    plan = index.plan([0, 1])
    assert plan.core_start.tolist() == [0, 100] == plan.read_start.tolist() and plan.core_stop.tolist() == [5000, 200]
    for k in (0, 1): assert index.labels([k])[0][0].tolist() == part_labels(parts[k], QWERTY)[0].tolist()


def test_batch_fields_agree_with_the_files(sessions):
    store = SignalStore(sessions[::-1])                                    # another order than the index
    index = WindowIndex([whole(s) for s in sessions], WindowSpec(600, 150, 20), QWERTY, jitter=True)
    windows = WindowSet(store, index)
    numbers = np.array([0, 9, len(index) - 1, 3])
    batch, plan = windows.batch(numbers, make_generator(4)), index.plan(numbers, make_generator(4))
    assert index.domains == {"ada": 0, "ben": 1, "cleo": 2}
    for k in range(4):
        session = index.sessions[batch.sessions[k]]
        assert index.domains[session.user] == batch.domains[k]
        n, start = int(batch.signal_lengths[k]), int(batch.starts[k])
        assert n == plan.read_stop[k] - plan.read_start[k]
        assert np.array_equal(batch.signal[k, :n].numpy(), read_signal(session, start, start + n)) and not batch.signal[k, n:].any()
        assert batch.signal[k, 0, 0, 0] == start
    types = {k: getattr(batch, k).dtype for k in ("signal_lengths", "labels", "label_lengths", "domains", "sessions", "starts")}
    assert set(types.values()) == {torch.int64} and batch.signal.dtype == torch.float32
    moved = batch.to("cpu")
    assert torch.equal(moved.labels, batch.labels) and len(moved) == 4


def test_resident_store_gives_the_same_batches(sessions):
    index = WindowIndex([whole(s) for s in sessions], WindowSpec(600, 150, 20), QWERTY, jitter=True)
    a, b = (list(WindowLoader(WindowSet(SignalStore(sessions, p), index), 5, shuffle=True, seed=2)) for p in ("mmap", "device"))
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.signal, y.signal) and torch.equal(x.labels, y.labels) and torch.equal(x.starts, y.starts)


def make_loader(sessions, batch_size=7, prefetch=1, **options):
    index = WindowIndex([whole(s) for s in sessions], WindowSpec(400, 150, 20, 150), QWERTY, jitter=True)
    return WindowLoader(WindowSet(SignalStore(sessions), index), batch_size, prefetch=prefetch, **options)


def identity(batches): return [(int(s), int(t), int(n)) for b in batches for s, t, n in zip(b.sessions, b.starts, b.label_lengths)]


def test_loader_is_a_function_of_seed_and_epoch(sessions):
    loader = make_loader(sessions, shuffle=True, seed=1)
    seen = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        seen.append(identity(loader))
    assert len({tuple(s) for s in seen}) == 4
    resumed = make_loader(sessions, shuffle=True, seed=1, prefetch=0)
    torch.manual_seed(99)
    np.random.seed(99)
    resumed.set_epoch(2)
    assert identity(resumed) == seen[2]
    assert identity(make_loader(sessions, shuffle=True, seed=2)) != seen[0]
    loader.set_epoch(0)
    assert identity(make_loader(sessions, 3, shuffle=True, seed=1)) == seen[0] == identity(loader)  # whatever the batch size


def test_an_epoch_visits_every_window_once(sessions):
    loader = make_loader(sessions, shuffle=True)
    order, shifts = loader.schedule()
    assert sorted(order) == list(range(len(loader.window_set)))
    assert (shifts <= np.maximum(loader.window_set.index.draw_limits(order) - 1, 0)).all() and shifts.any()
    sizes = [len(b) for b in loader]
    assert sum(sizes) == len(order) and len(sizes) == len(loader) and set(sizes[:-1]) == {7}
    dropping = make_loader(sessions, 50, drop_last=True)
    assert [len(b) for b in dropping] == [50] * (len(order) // 50) and len(dropping) == len(order) // 50


def test_batches_that_are_kept_are_never_overwritten(sessions):
    loader = make_loader(sessions, 4)
    kept = list(loader)
    again = [b.signal.clone() for b in loader]
    assert all(torch.equal(a.signal, b) for a, b in zip(kept, again, strict=True))


def test_loader_stops_early_and_starts_again(sessions):
    loader = make_loader(sessions, 4, shuffle=True)
    first = next(iter(loader))
    assert torch.equal(next(iter(loader)).signal, first.signal)


def test_run_ahead_keeps_order_and_passes_errors_on():
    assert list(run_ahead([lambda k=k: k for k in range(9)], 3)) == list(range(9))
    assert list(run_ahead([], 2)) == []
    def fail(): raise KeyError("inside")
    stream = run_ahead([lambda: 1, fail, lambda: 3], 1)
    assert next(stream) == 1
    with pytest.raises(KeyError, match="inside"): list(stream)


def test_label_table_keeps_sessions_apart(sessions):
    table = LabelTable(sessions, QWERTY)
    for k, s in enumerate(sessions):
        labels, lengths = table.cut(np.array([k]), np.array([0]), np.array([s.n_samples]))
        assert labels[0].tolist() == part_labels(whole(s), QWERTY)[0].tolist() and lengths[0] == labels.shape[1]


def test_clear_refusals(sessions, tmp_path):
    for bad, name in ((dict(length=0), "length"), (dict(length=5.5), "length"), (dict(length=5, left_context=-1), "left_context"), (dict(length=5, stride=0), "stride")):
        with pytest.raises(WindowError, match=name): WindowSpec(**bad)
    with pytest.raises(WindowError, match="no parts"): WindowIndex([], WindowSpec(10), QWERTY)
    with pytest.raises(WindowError, match="longest has 900"): WindowIndex([whole(sessions[2])], WindowSpec(901), QWERTY)
    with pytest.warns(UserWarning, match=r"1 of 4 parts are shorter .*s2 \(900\)"):
        index = WindowIndex([whole(s) for s in sessions], WindowSpec(901), QWERTY)
    assert index.counts[2] == 0 and 2 not in index.plan(np.arange(len(index))).sessions
    with pytest.raises(WindowError, match="does not have session s0"): WindowSet(SignalStore(sessions[1:]), WindowIndex([whole(sessions[0])], WindowSpec(10), QWERTY))
    with pytest.raises(WindowError, match="batch_size"): make_loader(sessions, 0)
    with pytest.raises(WindowError, match="do not fill"): make_loader(sessions, 10_000, drop_last=True)


# -------------------------------------------------------------------------------------------------- the balanced order
def uneven(rng, n_users):
    "Owners of windows: everything from one window to two hundred per user, in no order, numbers with holes."
    counts = np.maximum((200 * rng.random(n_users) ** 4).astype(int), 1)
    return rng.permutation(np.repeat(np.sort(rng.choice(3 * n_users, n_users, replace=False)), counts))


@pytest.mark.parametrize("n_users,batch_size", [(2, 32), (5, 16), (18, 32), (40, 32), (32, 32), (3, 1), (7, 1000)])
def test_balanced_batches_hold_as_many_of_every_user(n_users, batch_size):
    rng = np.random.default_rng(n_users)
    owners = uneven(rng, n_users)
    names = np.unique(owners)
    for epoch in range(4):
        order = balanced_order(owners, batch_size, 3, epoch)
        assert order.shape == owners.shape and order.min() >= 0 and order.max() < len(owners)
        for k in range(0, len(order), batch_size):
            batch = owners[order[k:k + batch_size]]
            counts = np.array([(batch == u).sum() for u in names])
            assert counts.max() - counts.min() <= 1
        totals = np.array([(owners[order] == u).sum() for u in names])
        assert totals.max() - totals.min() <= 1


def test_balanced_reuse_is_even_and_nothing_is_forgotten():
    "Within an epoch every window of a rarer user comes equally often up to one, one of a frequent user at most once; a few epochs show all."
    owners = uneven(np.random.default_rng(1), 12)
    share, sizes = len(owners) // 12, {u: (owners == u).sum() for u in np.unique(owners)}
    assert min(sizes.values()) < share < max(sizes.values())
    seen = np.zeros(len(owners), int)
    for epoch in range(-(-max(sizes.values()) // share)):
        times = np.bincount(balanced_order(owners, 24, 0, epoch), minlength=len(owners))
        seen += times
        for user, size in sizes.items():
            mine = times[owners == user]
            assert mine.max() - mine.min() <= 1
            if size <= share: assert mine.min() >= 1 and mine.min() >= share // size
            else: assert mine.max() <= 1
    assert seen.min() >= 1


def test_balanced_order_is_a_function_of_seed_and_epoch():
    owners = uneven(np.random.default_rng(2), 6)
    orders = {(seed, epoch): tuple(balanced_order(owners, 8, seed, epoch)) for seed in (0, 1) for epoch in range(5)}
    assert len(set(orders.values())) == 10
    np.random.seed(5)
    assert tuple(balanced_order(owners, 8, 1, 3)) == orders[1, 3]


def test_user_turns_favour_nobody_and_mix_who_meets_whom():
    turns = user_turns(32 * 30, 32, 96, np.random.default_rng(0)).reshape(30, 32)
    assert all(len(set(batch)) == 32 for batch in turns) and np.ptp(np.bincount(turns.ravel())) == 0
    partners = {tuple(sorted(batch)) for batch in turns}
    assert len(partners) == 30, "the same users meet in every round"
    laps = user_turns(32 * 30, 32, 5, np.random.default_rng(0)).reshape(30, 32)
    assert len({tuple(batch[:10]) for batch in laps}) == 30, "users stand in the same order in every batch"


def test_balanced_copies_lie_a_lap_apart_and_laps_are_shuffled():
    "A user's windows all come once before one comes again, in another order in every lap and every epoch."
    owners = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [10, 10, 40]))
    laps = set()
    for epoch in range(3):
        order = balanced_order(owners, 6, 0, epoch)
        mine = order[owners[order] == 0]
        assert len(mine) == 20
        for lap in (mine[:10], mine[10:]):
            assert set(lap) == set(np.flatnonzero(owners == 0))
            laps.add(tuple(lap))
    assert len(laps) == 6


def test_balanced_loader(sessions):
    plain, even = make_loader(sessions, 6, shuffle=True, seed=4), make_loader(sessions, 6, shuffle=True, seed=4, balanced=True)
    assert len(even) == len(plain)
    order, shifts = even.schedule()
    assert len(order) == len(shifts) == len(even.window_set)
    batches = list(even)
    for batch in batches: assert np.ptp(np.bincount(batch.domains, minlength=3)) <= 1
    assert np.array_equal(np.concatenate([b.domains for b in batches]), even.window_set.owners()[order])
    again = make_loader(sessions, 6, shuffle=True, seed=4, balanced=True, prefetch=0)
    assert identity(again) == identity(even)
    even.set_epoch(1)
    assert identity(even) != identity(again)
    repeated = [w for w in np.unique(order) if (order == w).sum() > 1 and even.window_set.index.draw_limits([w])[0] > 50]
    assert len(repeated) > 3 and np.mean([len(set(shifts[order == w])) > 1 for w in repeated]) > 0.7  # a copy has a shift of its own
    limits = even.window_set.index.draw_limits(order)
    assert (shifts <= np.maximum(limits - 1, 0)).all()
    assert len(make_loader(sessions, 6, shuffle=True, balanced=True, drop_last=True)) == len(make_loader(sessions, 6, drop_last=True))
    with pytest.raises(WindowError, match="shuffle=True"): make_loader(sessions, 6, balanced=True)


def test_balanced_loader_without_windows_of_a_user(sessions):
    "A user whose recordings are all too short keeps his number, and nobody waits for him."
    parts = [whole(sessions[0]), Part(sessions[2], 0, 100), whole(sessions[3])]  # cleo, ada (too short), ben
    with pytest.warns(UserWarning, match="1 of 3 parts"): index = WindowIndex(parts, WindowSpec(400), QWERTY)
    loader = WindowLoader(WindowSet(SignalStore([p.session for p in parts]), index), 4, shuffle=True, balanced=True)
    assert index.domains["ada"] == 0 and set(loader.window_set.owners()) == {1, 2}
    assert all(np.bincount(b.domains).tolist() == [0, 2, 2] for b in list(loader)[:-1])
