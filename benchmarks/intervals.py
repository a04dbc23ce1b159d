"""Bootstrap by arrays of drawn children against the same draw written as a loop, and the exact sign-flip test against random signs.

    python benchmarks/intervals.py [--pairs 3] [--resamples 2000]

192 sessions of 96 users, 40 blocks in each. Both ways draw users, then their sessions, then the blocks of these; the loop does it one resample
and one session at a time, with numpy inside a session. It runs a tenth of the resamples and its time is multiplied by ten. All ways run turn
about in one process; ratios are medians of pair-wise ratios of processor time. Leaves benchmarks/results/intervals.json.
"""
import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np

from semgbook.repro import atomic_write, numpy_generator
from semgbook.statistics import ErrorTable, resample_sums, sign_flip_p

USERS, SESSIONS, BLOCKS, FLIPS = 96, 192, 40, 10_000


def made_up_table(rng):
    "Edits of 40 blocks of 50 characters in 192 sessions of 96 users."
    n = SESSIONS * BLOCKS
    return ErrorTable(rng.binomial(50, 0.2, n), np.full(n, 50), np.repeat(np.arange(SESSIONS), BLOCKS), np.repeat(np.arange(USERS), SESSIONS // USERS),
                      tuple(range(SESSIONS)), tuple(range(USERS)))


def loop_over_resamples(table, values, n_resamples, rng):
    "One resample after the other, one session after the other."
    sessions_of = [np.flatnonzero(table.user == u) for u in range(USERS)]
    blocks_of = [np.flatnonzero(table.session == s) for s in range(SESSIONS)]
    rows = []
    for _ in range(n_resamples):
        total = np.zeros(values.shape[1])
        for user in rng.integers(0, USERS, USERS):
            for session in rng.choice(sessions_of[user], len(sessions_of[user])):
                blocks = blocks_of[session]
                total += values[blocks[rng.integers(0, len(blocks), len(blocks))]].sum(0)
        rows.append(total)
    return np.array(rows)


def random_signs(differences, rng):
    "p-value from ten thousand random sign patterns."
    signs = 1 - 2 * rng.integers(0, 2, (FLIPS, len(differences)), dtype=np.int8)
    return float(np.mean(np.abs(signs @ differences) >= abs(differences.sum())))


def seconds(function, *arguments):
    "Processor time and result."
    begin = time.process_time()
    result = function(*arguments)
    return time.process_time() - begin, result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--resamples", type=int, default=2000)
    arguments = parser.parse_args()
    rng = numpy_generator(0, "intervals")
    table = made_up_table(rng)
    values, differences = np.stack([table.edits, table.typed], 1), rng.integers(-40, 46, SESSIONS)
    rows = []
    for _ in range(arguments.pairs):
        arrays, fast = seconds(resample_sums, table, values, "users", arguments.resamples, rng)
        loop, slow = seconds(loop_over_resamples, table, values, arguments.resamples // 10, rng)
        exact, p = seconds(sign_flip_p, differences)
        drawn, p_drawn = seconds(random_signs, differences, rng)
        spreads = [float(np.std(sums[:, 0] / sums[:, 1])) for sums in (fast, slow)]
        assert abs(spreads[0] / spreads[1] - 1) < 0.25 and abs(p - p_drawn) < 0.03, "the two ways do not draw the same thing"
        rows.append(dict(arrays_s=arrays, loop_s=10 * loop, ratio=10 * loop / arrays, exact_s=exact, random_signs_s=drawn, ratio_signs=drawn / exact))
    result = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
    result |= dict(resamples=arguments.resamples, users=USERS, sessions=SESSIONS, blocks=BLOCKS, random_patterns=FLIPS, pairs=arguments.pairs,
                   numpy=np.__version__, python=platform.python_version(), machine=platform.machine())
    path = Path(__file__).parent / "results" / "intervals.json"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
