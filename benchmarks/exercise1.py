"""Exercise 1 from the command to the result: trials that train together in one program against one trial at a time.

    python benchmarks/exercise1.py [--repeats 3] [--steps own 30000]

Each measurement is one process, ``tune-hpc run exercise1_1stpart exercise1_2ndpart --no-report``, from its start to its
end: 15 trials of gradient descent on a line, once with tune_hpc's fusion of trials (the default) and once with
``--fuse off``. The spaces themselves ask for 30,000 steps in part 1 and 2500 in part 2; the second size has 30,000 in
both.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_tune_hpc, summarise

PEERS = {"fused": [], "unfused": ["--fuse", "off"]}
#: The steps that the spaces themselves ask for.
OWN = "own"


def search(more: list[str], steps: str, folder: Path) -> Measurement:
    """Run both parts with tune_hpc, and sum up what they found."""
    size = [] if steps == OWN else ["--set", f"steps={steps}"]
    measured, found = run_tune_hpc("exercise1_1stpart", "exercise1_2ndpart", *size, *more, folder=folder)
    return measured | {"trials": sum(len(one.trials) for one in found), "rows": sum(len(one.history) for one in found)}


def main() -> None:
    """Measure both sizes in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--steps", nargs="+", default=[OWN, "30000"], metavar="N",
                        help="sizes: a number of steps, or own: what the spaces ask for")  # fmt: skip
    flags = parser.parse_args()
    chosen = [name for name in PEERS if name in flags.only]
    contenders = {f"{name}, {steps}": partial(search, PEERS[name], steps) for steps in flags.steps for name in chosen}
    measured = measure(contenders, flags.repeats)
    table = [
        {"steps": steps, **row}
        for steps in flags.steps
        for row in summarise({name: measured[f"{name}, {steps}"] for name in chosen}, "process_s")
    ]
    publish(flags, "Seconds for Exercise 1's 15 trials, process start included", measured, table)


if __name__ == "__main__":
    main()
