"""Jobs as their folders tell of them, without anybody who runs them."""

import json
from datetime import timedelta

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.cluster.job_folder import JobFolder, make_id, utc_now


def job_in(storage, name="made.up", **asked):
    """Return a new job of one experiment of five trials, asked for once."""
    job = JobFolder(storage / make_id(name))
    plain = {"name": name, "num_trials": 5, "metric": "loss", "searcher": "random", "scheduler": "none"}
    job.make({"id": job.id, "submitted": "2026-01-01T00:00:00+00:00", "experiments": [plain | asked], "options": {}})
    job.add_attempt("start", {"kind": "elsewhere"}, {})
    return job


def beat(job, number=1, ago_s=0.0, **told):
    """Have the driver of an attempt say something."""
    at = (utc_now() - timedelta(seconds=ago_s)).isoformat(timespec="seconds")
    process = {"host": "elsewhere", "pid": 1, "began": "then"}
    job.write_run(number, {"process": process, "began": at, "beat": at, **told})


def progress(job, name="made.up", **told):
    """Have an experiment of a job tell how far it is."""
    home = ExperimentFolder(job.path / name)
    home.claim(name)
    home.write({"name": name, "metric": "loss", "mode": "min", "config_keys": [], "state": "running", "num_trials": 5})
    told = {"at": utc_now().isoformat(timespec="seconds"), **told}
    home.progress.write_text(json.dumps(told), encoding="utf-8")
