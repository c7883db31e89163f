"""All measurements and full-size runs that need a GPU, in one command.

    python benchmarks/gpu.py [--minutes 25] [--output-dir benchmarks/results/gpu] [--seeds 3]
    python benchmarks/gpu.py --rehearse       # all steps at a tiny size on a CPU, as a test

The steps, the most important first:

1. one trial of the report's winner (5000 steps of 150 images; the report: 19.3 s), as a CUDA graph and eagerly, in each
   precision
2. the 72 trials of Exercise 2's network as one program
3. throughput against the number of fused trials
4. the same 72 trials through Ray: as fused groups, as separate trials that share the GPU, and in sequence
5. the winner of the open space with five seeds
6. Exercise 4 at several widths and batch sizes, on 1 to all GPUs, with predictions for 2 and 4 GPUs on NVLink
7. the tables of Exercises 3 and 2 at full size, and the search of the open space
8. the cost of a search compared with the grid of Tables 4.3 to 4.5

Each step writes a JSON file or an experiment folder for ``tune-hpc report``. Steps that have a result are skipped. No
step starts after ``--minutes``, and the last one finishes.
"""

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import describe_machine, run_process  # noqa: E402

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

#: Precisions of matrix products. Parameters are float32.
PRECISIONS = ("float32", "tf32", "bfloat16")

#: Ways in which the 72 trials share one GPU through Ray.
WAYS: dict[str, dict[str, Any]] = {
    "fused, a quarter of the GPU a bundle": {},
    "fused, one program": {"fuse": 72, "gpus_per_trial": 1},
    "separate, four share the GPU": {"fuse": "off", "gpus_per_trial": 0.25},
    "separate, one after another": {"fuse": "off", "gpus_per_trial": 1},
}
#: Values of a rehearsal.
TINY: dict[str, Any] = {
    "steps": 10,
    "width": 0.05,
    "batch_size": 10,
    "num_evaluations": 2,
    "num_evaluation_images": 100,
}


def one_trial(config: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Train one model as a CUDA graph and eagerly; return training times and accuracies."""
    import torch

    from tune_hpc.learning.config import complete
    from tune_hpc.learning.data import load_images
    from tune_hpc.learning.training import Communicator, Training

    images = load_images("mnist")
    measured: dict[str, Any] = {}
    for precision in PRECISIONS:
        whole = complete({**config, "precision": precision})
        for way, is_recorded in (("recorded", True), ("eager", False)):
            training = Training([whole], images, torch.device(device), Communicator(allow_cuda_graphs=is_recorded))
            began = time.perf_counter()
            training.run(0, training.num_steps)
            seconds = time.perf_counter() - began
            (accuracy,) = training.evaluate()["test_accuracy"]
            measured[f"{precision}, {way}"] = {
                "train_s": seconds,
                "samples_per_s": training.num_steps * whole["batch_size"] / seconds,
                "test_accuracy": accuracy,
            }
    return measured


def one_program(configs: Sequence[Mapping[str, Any]], device: str) -> dict[str, Any]:
    """Train all trials as one program and return its times."""
    from tune_hpc.learning.data import load_images
    from tune_hpc.learning.training import train_fused

    images = load_images("mnist")
    measured: dict[str, Any] = {}
    for precision in PRECISIONS:
        began = time.perf_counter()
        rows = train_fused(
            [{**config, "precision": precision} for config in configs],
            [lambda step, metrics: None] * len(configs),
            images=images,
            device=device,
        )
        measured[precision] = {
            "num_trials": len(rows),
            "whole_s": time.perf_counter() - began,
            **{name: math.fsum(row[name] for row in rows) for name in ("setup_s", "train_s", "eval_s")},
            "num_diverged": sum(row["status"] == "diverged" for row in rows),
        }
    return measured


def through_ray(experiment: "Experiment", folder: Path, on_gpu: bool) -> dict[str, Any]:
    """Run an experiment in each of ``WAYS``; return the seconds from the first start of a trial to the last end."""
    from tune_hpc import run

    measured: dict[str, Any] = {}
    for number, (way, options) in enumerate(WAYS.items()):
        # A rehearsal starts few processes, because each imports torch.
        run_options = options if on_gpu else {"fuse": options.get("fuse", "auto"), "max_concurrent": 1}
        results = run(
            experiment, output_dir=folder / f"way{number}", overwrite=True, show_progress=False, **run_options
        )
        measured[way] = {
            "wall_s": results.experiment["provenance"]["wall_s"],
            "counts": results.counts(),
            "best": float(results.best()[results.metric]),
        }
    return measured


def whole_experiment(experiment: "Experiment", folder: Path) -> dict[str, Any]:
    """Run an experiment in a folder and return statistics of its training times."""
    from tune_hpc.jobs.launch import launch

    (results,) = launch([experiment], [folder], overwrite=True)
    seconds = results.trials["train_s"]
    return {
        "num_trials": len(results.trials),
        "counts": results.counts(),
        "train_s": {"median": seconds.median(), "min": seconds.min(), "max": seconds.max()},
    }


def plan(flags: argparse.Namespace, on_gpu: bool) -> dict[str, Callable[[], Any]]:
    """Return the steps, the most important first."""
    import torch
    from ray import tune

    from search_spaces import exercise2, exercise3, exercise4

    seeds = tuple(range(flags.seeds))
    small = {} if on_gpu else TINY
    device = "cuda" if on_gpu else "cpu"
    winner = next(exercise3.winner.with_values(small).configs())
    network = exercise2.cnn.with_values(small)
    network = network if on_gpu else network.replace(searcher="random", num_samples=4)
    workers = list(range(1, torch.cuda.device_count() + 1)) or [1]
    sizes = {"width": tune.choice([0.25, 1.0, 4.0]), "batch_size": tune.choice([50, 150, 600]), "num_timed_steps": 500}
    exercise = exercise4.experiment.with_values(sizes) if on_gpu else exercise4.experiment.quick_version()
    scaling = exercise.with_values({"workers": tune.choice(workers), **small})
    sweep = ["--device", device, "--repeats", 3 if on_gpu else 1, "--seconds", 1 if on_gpu else 0.01]
    sweep += [] if on_gpu else ["--max-members", 2, "--only", "softmax"]
    steps: dict[str, Callable[[], Any]] = {
        "one_trial": partial(one_trial, winner, device),
        "one_program": partial(one_program, list(network.configs()), device),
        "fusion": lambda: run_process(
            "benchmarks.fusion", *sweep, "--output", flags.output_dir.absolute() / "fusion_figure.json",
            folder=flags.output_dir,
        ),
        "through_ray": lambda: through_ray(network, flags.output_dir / "through_ray", on_gpu),
    }  # fmt: skip
    first, last = exercise3.open_winner.replace(seeds=range(5)), exercise3.open
    others = [one for one in exercise3.experiments if one.name not in (first.name, last.name, exercise3.winner.name)]
    tables = [one.replace(seeds=seeds) for one in [*others, exercise2.cnn]]
    for experiment in [exercise3.winner, first, scaling, *tables, last] if on_gpu else [scaling]:
        steps[experiment.name] = partial(whole_experiment, experiment, flags.output_dir / experiment.name)
    size = ["--width", 1, "--steps", 5000, "--images", 10_000, "--repeats", 1]
    if not on_gpu:
        size = ["--width", 0.03, "--steps", 8, "--images", 50, "--repeats", 1, "--seeds", 2]
        size += ["--only", "random, a fifth"]
    steps["search_cost"] = lambda: run_process(
        "benchmarks.search_cost", *size, "--output", flags.output_dir.absolute() / "search_cost_figures.json",
        folder=flags.output_dir,
    )  # fmt: skip
    return steps


def main() -> int:
    """Run the steps without a result, the most important first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="start no step after this time (default: 25)")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the tables of Exercises 2 and 3 (default: 3)")
    parser.add_argument(
        "--rehearse", action="store_true", help="run all steps at a tiny size on a CPU; measures nothing"
    )
    flags = parser.parse_args()

    import ray
    import torch

    on_gpu = torch.cuda.is_available() and not flags.rehearse
    if not on_gpu and not flags.rehearse:
        print("no GPU found, nothing measured; use --rehearse to test the command on a CPU", file=sys.stderr)
        return 1
    if flags.rehearse and flags.output_dir == parser.get_default("output_dir"):
        parser.error("--rehearse needs a separate --output-dir, because its numbers mean nothing")
    machine = describe_machine()
    if on_gpu:
        machine |= {"gpu": torch.cuda.get_device_name(), "num_gpus": torch.cuda.device_count()}

    from tune_hpc.search.ray_session import ray_session

    flags.output_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * flags.minutes
    with ray_session():
        # The processes of the steps use this Ray, too, which listens on loopback only.
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        for name, step in plan(flags, on_gpu).items():
            file = flags.output_dir / f"{name}.json"
            if file.exists():
                continue
            if time.monotonic() > deadline:
                print(f"no time left for {name} and later steps", file=sys.stderr)
                break
            began = time.perf_counter()
            try:
                measured = step()
            except Exception:  # A failed step must not prevent the others.
                logging.exception("%s failed", name)
                continue
            took = time.perf_counter() - began
            text = json.dumps({"machine": machine, "seconds": took, "measured": measured}, indent=1)
            file.write_text(text + "\n", encoding="utf-8")
            print(f"{name}: {took:.0f} s\n{json.dumps(measured, indent=1)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
