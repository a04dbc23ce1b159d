"How much faster than real time one 2 x 16 session is simulated on one core."
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"): os.environ.setdefault(name, "1")

import argparse
import json
import time
from pathlib import Path

from semgbook.repro import atomic_write, provenance
from semgbook.synthetic import CorpusSpec, simulate_one


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="length of the session")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many is reported")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"): os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    spec, walls, cpus = CorpusSpec((("user", args.repeats + 1, args.minutes),)), [], []
    simulate_one(CorpusSpec((("user", 1, .1),)), 0, 0)  # warm up
    for i in range(args.repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        simulate_one(spec, 0, i)  # text, typing, user and signal
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    seconds = 60 * args.minutes
    result = dict(benchmark="simulator", session_seconds=seconds, wall_seconds=round(min(walls), 3), cpu_seconds=round(min(cpus), 3),
                  times_real_time=round(seconds / min(walls), 1), times_real_time_cpu=round(seconds / min(cpus), 1), target=50, load_average=round(os.getloadavg()[0], 1), provenance=provenance())
    path = Path(__file__).parent / "results" / "simulator.json"
    atomic_write(path, json.dumps(result, indent=1))
    print(f"simulator: {seconds:.0f} s of 2 x 16 electrodes at 2 kHz in {min(walls):.2f} s on one core = {seconds / min(walls):.0f} x real time"
          f" ({seconds / min(cpus):.0f} x by CPU time; target 50)")


if __name__ == "__main__": main()
