"""Step time of two workers on two Ray nodes of this machine, measured and predicted.

    python benchmarks/two_nodes.py [--repeats 3] [--width 0.25] [--steps 100]

The workers share the batches of the network of Exercise 4 and exchange gradients by gloo. The prediction uses probes
of the same link, none of which is a step of two workers. Prints a table and writes a JSON file.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, publish

ONE_WORKER, TWO_WORKERS = "one worker", "two workers, a node each"


def main() -> None:
    """Start two nodes, measure on them, and compare with the model."""
    parser = benchmark_parser(__file__, __doc__, [ONE_WORKER, TWO_WORKERS])
    parser.add_argument("--width", type=float, default=0.25, metavar="W", help="width of the network (default: 0.25)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="timed steps (default: 100)")
    flags = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"

    from ray.cluster_utils import Cluster

    from search_spaces.exercise4 import experiment
    from tune_hpc import scaling
    from tune_hpc.report.scaling_tables import predictions
    from tune_hpc.scaling.step_time_model import MEASURED_LINK

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        with tempfile.TemporaryDirectory() as folder:
            config = {key: value for key, value in next(experiment.configs()).items() if key != "workers"}
            results = scaling.measure(
                config, workers=(1, 2), repeats=flags.repeats, width=flags.width, num_timed_steps=flags.steps,
                spread=True, address=cluster.address, output_dir=Path(folder) / "out",
            )  # fmt: skip
    finally:
        cluster.shutdown()
    predicted = predictions(results)
    measured: dict[str, list[Measurement]] = {}
    table = []
    for workers, name in ((1, ONE_WORKER), (2, TWO_WORKERS)):
        trials = results.trials[results.trials["workers"] == workers]
        columns = ["step_s", "compute_s", "communicate_s", "data_s", "num_nodes"]
        measured[name] = [{column: row[column] for column in columns} for row in trials.to_dict("records")]
        here = predicted[(predicted["link"] == MEASURED_LINK) & (predicted["workers"] == workers)].iloc[0]
        median = trials["step_s"].median()
        table.append(
            {
                "contender": name,
                "nodes": int(trials["num_nodes"].iloc[0]),
                "step, ms": 1e3 * median,
                "min": 1e3 * trials["step_s"].min(),
                "max": 1e3 * trials["step_s"].max(),
                "predicted, ms": 1e3 * here["step_s"],
                "off, %": 100 * (here["step_s"] / median - 1),
                "of it exchange, ms": 1e3 * trials["communicate_s"].median(),
            }
        )
    publish(flags, "A worker on each of two Ray nodes, gloo over the link between them", measured, table)


if __name__ == "__main__":
    main()
