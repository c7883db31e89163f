"""Every measurement and full-size run that needs a GPU, in one command; what is already there is not made again.

    python benchmarks/gpu.py [--minutes 25] [--output-dir benchmarks/results/gpu] [--seeds 3]

In order of worth: one trial of the report's winner (5000 steps of 150 images; the report: 19.3 s), Exercise 4 on the
GPUs that are there, the tables of Exercise 3, the network of Exercise 2. Each run writes its experiment folder, from
which ``tune-hpc report`` makes the page; the last one that fits into the time is begun, and a run that is begun ends.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Make what is missing, most wanted first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="begin nothing after so many (default: 25)")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--seeds", type=int, default=3, help="of the tables of Exercises 2 and 3 (default: 3)")
    flags = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    import torch

    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured", file=sys.stderr)
        return 1

    from search_spaces import exercise2, exercise3, exercise4
    from tune_hpc.analysis.folder import ExperimentFolder
    from tune_hpc.search.reference import load_reference
    from tune_hpc.search.session import ray_session

    seeds = tuple(range(flags.seeds))
    wanted = [
        exercise3.winner,
        exercise4.experiment.with_values({"workers": torch.cuda.device_count()}),
        *(one.replace(seeds=seeds) for one in exercise3.experiments if one is not exercise3.winner),
        exercise2.cnn.replace(seeds=seeds),
    ]
    deadline = time.monotonic() + 60 * flags.minutes
    with ray_session():
        for experiment in wanted:
            folder = flags.output_dir / experiment.name
            home = ExperimentFolder(folder)
            if home.holds_experiment and home.read()["state"] == "finished":
                continue
            if time.monotonic() > deadline:
                print(f"no time left for {experiment.name} and what follows", file=sys.stderr)
                break
            began = time.perf_counter()
            (results,) = load_reference(experiment.runner)([experiment], folders=[folder], overwrite=True)
            took = time.perf_counter() - began
            seconds = results.trials["train_s"]
            print(
                f"{experiment.name}: {len(results.trials)} trials in {took:.0f} s; training time of one: "
                f"median {seconds.median():.2f} s, {seconds.min():.2f} to {seconds.max():.2f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
