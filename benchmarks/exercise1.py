"""Exercise 1 as a whole process: fused trials against separate trials.

    python benchmarks/exercise1.py [--repeats 3] [--steps default 30000]

Each measurement is one process, ``tune-hpc run exercise1_1stpart exercise1_2ndpart --no-report``: 15 trials of gradient
descent on a line, with fused trials (the default) or with ``--fuse off``. The search spaces have 30,000 steps in part 1
and 2500 in part 2. The second size has 30,000 in both.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_tune_hpc, summarise

PEERS = {"fused": [], "unfused": ["--fuse", "off"]}
#: Keep the numbers of steps of the search spaces.
DEFAULT = "default"


def search(more: list[str], steps: str, folder: Path) -> Measurement:
    """Run both parts with tune_hpc and count their trials and rows."""
    size = [] if steps == DEFAULT else ["--set", f"steps={steps}"]
    measured, found = run_tune_hpc("exercise1_1stpart", "exercise1_2ndpart", *size, *more, folder=folder)
    return measured | {"trials": sum(len(one.trials) for one in found), "rows": sum(len(one.history) for one in found)}


def main() -> None:
    """Measure both sizes in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--steps", nargs="+", default=[DEFAULT, "30000"], metavar="N",
                        help="numbers of steps, or default: those of the search spaces")  # fmt: skip
    flags = parser.parse_args()
    selected = [name for name in PEERS if name in flags.only]
    contenders = {f"{name}, {steps}": partial(search, PEERS[name], steps) for steps in flags.steps for name in selected}
    measured = measure(contenders, flags.repeats)
    table = [
        {"steps": steps, **row}
        for steps in flags.steps
        for row in summarise({name: measured[f"{name}, {steps}"] for name in selected}, "process_s")
    ]
    publish(flags, "Seconds for Exercise 1's 15 trials, process start included", measured, table)


if __name__ == "__main__":
    main()
