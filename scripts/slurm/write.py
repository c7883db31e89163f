"""Write two example batch scripts to this folder: a search and a scaling measurement on two nodes of four GPUs.

    python scripts/slurm/write.py

``tune-hpc slurm NAME --nodes 2 --gpus-per-node 4 --time 02:00:00`` writes the script of another search.
"""

from pathlib import Path

from tune_hpc.jobs.sbatch import Allocation, batch_script

SCRIPTS = {
    "search.sbatch": (
        Allocation("02:00:00", nodes=2, gpus_per_node=4, job_name="search", environment=".venv"),
        ["tune-hpc", "run", "exercise3.open", "--num-samples=64", "--output-dir=runs/search", "--resume"],
    ),
    # An interrupted measurement restarts, so the script needs no warning before the time limit.
    "scale.sbatch": (
        Allocation("02:00:00", nodes=2, gpus_per_node=4, warning_s=None, job_name="scale", environment=".venv"),
        ["tune-hpc", "scale", "--workers=1,2,4,8", "--output-dir=runs/scaling", "--resume"],
    ),
}


def texts() -> dict[str, str]:
    """Return the text of each script by file name."""
    return {name: batch_script(*what) for name, what in SCRIPTS.items()}


if __name__ == "__main__":
    for name, text in texts().items():
        Path(__file__).with_name(name).write_text(text, encoding="utf-8")
