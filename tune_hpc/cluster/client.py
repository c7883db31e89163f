"""Submits jobs, watches and steers them; the same on a Ray cluster, on this machine and in this process.

    client = Client("http://head:8265", storage="/nfs/runs")    # a Ray cluster
    client = LocalClient("runs/jobs")                           # processes of this machine
    client = InProcessClient("runs/jobs")                       # this process, to look into it

    job = client.submit(exercise2.softmax)
    print(job.status())
    job.wait()
    job.results()[0].best()

The storage is what counts: a job is found there by its id whatever has become of the cluster that ran it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_hpc.analysis.object_store import delete_tree, here, names_in, pull
from tune_hpc.analysis.results import Results, load_all
from tune_hpc.cluster.job_folder import JobFolder, JobState, is_id, make_id, utc_now
from tune_hpc.cluster.launchers import DriverState, InProcess, Launcher, Processes
from tune_hpc.cluster.ray_jobs import RayJobs
from tune_hpc.cluster.status import JobStatus, silent_s, status_of
from tune_hpc.errors import ClusterError, FolderError, InvalidExperimentError, TuneHpcError, UnknownNameError
from tune_hpc.search.experiment import TRAIN, Experiment
from tune_hpc.search.launch import launch

#: Seconds between two looks at a job that is waited for.
LOOK_INTERVAL_S = 1.0
#: A driver that was heard of so many seconds ago need not be looked for.
FRESH_S = 15.0


@dataclass(frozen=True)
class Job:
    """A job, by its id.

    Attributes:
        client: Whose it is.
        id: Its name in the storage.
    """

    client: "JobClient"
    id: str

    @property
    def folder(self) -> JobFolder:
        """Its folder on the storage."""
        return self.client.folder(self.id)

    def status(self) -> JobStatus:
        """Return how it stands."""
        return self.client.status(self.id)

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield what its drivers printed, in pieces; with ``follow`` until it is not active any more."""
        return self.client.logs(self.id, follow=follow)

    def stop(self, *, force: bool = False) -> JobStatus:
        """Ask it to stop; see ``JobClient.stop``."""
        return self.client.stop(self.id, force=force)

    def resume(self, **options: Any) -> "Job":
        """Have it go on; see ``JobClient.resume``."""
        return self.client.resume(self.id, **options)

    def extend(self, num_samples: int, **options: Any) -> "Job":
        """Have it try more configurations; see ``JobClient.extend``."""
        return self.client.extend(self.id, num_samples, **options)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait until it is not active any more.

        Raises:
            TimeoutError: it still is after so many seconds.
        """
        began = time.monotonic()
        while (status := self.status()).state.is_active:
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise TimeoutError(f"{self.id} is {status.state} after {timeout_s:g} s")
            time.sleep(LOOK_INTERVAL_S)
        return status

    def results(self) -> list[Results]:
        """Return what happened so far, one for each experiment that has begun.

        Raises:
            FolderError: none has begun, or a file cannot be read.
        """
        return load_all(self.folder.place)


class JobClient:
    """What all clients have in common.

    Args:
        storage: The folder of all jobs, which every machine that works on them sees by this name, or
            ``s3://bucket/folder``.
        launcher: Where drivers run.
    """

    def __init__(self, storage: str | Path, launcher: Launcher) -> None:
        self.storage = here(storage).absolute()
        self.launcher = launcher

    def folder(self, job_id: str) -> JobFolder:
        """Return the folder of a job.

        Raises:
            UnknownNameError: it is none of this storage.
        """
        if not is_id(job_id):
            raise UnknownNameError(f"{job_id!r} is no job's id; one looks like exercise2.softmax-20261123-124533-4f1c")
        folder = JobFolder(self.storage / job_id)
        folder.read()
        return folder

    def job(self, job_id: str) -> Job:
        """Return a job of this storage.

        Raises:
            UnknownNameError: it is none.
        """
        return Job(self, self.folder(job_id).id)

    def jobs(self) -> list[Job]:
        """Return all jobs of this storage, the latest first."""
        found = [JobFolder(self.storage / name) for name in names_in(self.storage) if is_id(name)]
        # The moment of submission is in the id, before four digits that tell nothing.
        return [
            Job(self, one.id)
            for one in sorted(found, key=lambda one: (one.id[-20:-5], one.id), reverse=True)
            if one.is_there
        ]

    def submit(
        self,
        experiments: Experiment | Sequence[Experiment],
        *,
        code: str | Path | None = None,
        job_id: str | None = None,
        **options: Any,
    ) -> Job:
        """Have experiments run, and return at once.

        Args:
            experiments: One, or several that run as one stream of trials.
            code: Modules that a trainable of one's own needs: a folder whose Python files travel with the job. By
                default the trainable's own module.
            job_id: One of ``make_id`` that was noted beforehand, so that whoever asks twice gets one job; by default
                a new one.
            **options: Those of ``tuner.run_all``, but those that only the caller's own process knows.

        Raises:
            InvalidExperimentError: a rule is broken; nothing was submitted.
            ClusterError: nobody takes it; nothing was submitted.
            FolderError: the storage cannot be written.
        """
        chosen = [experiments] if isinstance(experiments, Experiment) else list(experiments)
        if not chosen:
            raise InvalidExperimentError("a job has at least one experiment; got none")
        self.launcher.check()
        job = JobFolder(self.storage / (job_id or make_id(chosen[0].name)))
        launch(chosen, [job.path / one.name for one in chosen], check_only=True, **options)
        asked = {
            "id": job.id,
            "submitted": utc_now().isoformat(timespec="seconds"),
            "experiments": [one.to_json() for one in chosen],
            "options": {name: _plain(value) for name, value in options.items() if value is not None},
        }
        job.make(asked)
        try:
            _copy_code(job, chosen, code)
            self._start(job, "start", {})
        except TuneHpcError:
            delete_tree(job.path)
            raise
        return Job(self, job.id)

    def status(self, job_id: str) -> JobStatus:
        """Return how a job stands.

        Raises:
            UnknownNameError: it is none of this storage.
        """
        job = self.folder(job_id)
        attempt = job.last_attempt()
        run = job.read_run(attempt.number) if attempt else {}
        if attempt is None or run.get("ended") or (run.get("began") and silent_s(run) < FRESH_S):
            return status_of(job)
        driver = self.launcher.state(job, attempt)
        said = self.launcher.output(job, attempt) if driver is DriverState.GONE and not run.get("began") else ""
        return status_of(job, driver, " ".join(said.split())[-500:])

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[str]:
        """Yield what a job's drivers printed, in pieces.

        Args:
            job_id: The job.
            follow: Until the job is not active any more.

        Raises:
            UnknownNameError: it is none of this storage.
        """
        job = self.folder(job_id)
        place = 0
        if not pull(job.output) and (attempt := job.last_attempt()):
            yield self.launcher.output(job, attempt)
        while True:
            is_active = follow and self.status(job_id).state.is_active
            if pull(job.output):
                with job.output.open("rb") as file:
                    file.seek(place)
                    if text := file.read():
                        place += len(text)
                        yield text.decode("utf-8", errors="replace")
            if not is_active:
                return
            time.sleep(LOOK_INTERVAL_S)

    def stop(self, job_id: str, *, force: bool = False) -> JobStatus:
        """Ask a job to stop: its trials save their state, and it can be resumed.

        Args:
            job_id: The job.
            force: Do not wait for anything: end its driver. Trials go on from the state that they kept last.

        Returns:
            How it stands now; it may take up to half a minute until it has stopped.

        Raises:
            UnknownNameError: it is none of this storage.
            FolderError: the storage cannot be written.
        """
        job = self.folder(job_id)
        status = self.status(job_id)
        attempt = job.last_attempt()
        if attempt is None or not status.state.is_active:
            return status
        job.ask_to_stop(attempt.number)
        if status.state is JobState.PENDING and job.claim(attempt.number):
            # No driver can begin on it now.
            told = {"state": JobState.STOPPED, "reason": "it was stopped before it began"}
            job.write_run(attempt.number, {**told, "ended": utc_now().isoformat(timespec="seconds")})
            self.launcher.end(job, attempt)
        elif force:
            self.launcher.end(job, attempt)
        return self.status(job_id)

    def resume(self, job_id: str, **options: Any) -> Job:
        """Have a job go on that ended before all its trials had.

        Args:
            job_id: The job.
            **options: Changes to those it was submitted with.

        Raises:
            InvalidExperimentError: it is active, or has finished.
            UnknownNameError: it is none of this storage.
            ClusterError: nobody takes it.
        """
        job, status = self.folder(job_id), self.status(job_id)
        if status.state is JobState.FINISHED:
            raise InvalidExperimentError(f"{job_id} has finished; extend it, or submit another search")
        return self._again(job, status, "resume", options)

    def extend(self, job_id: str, num_samples: int, *, experiment: str | None = None, **options: Any) -> Job:
        """Have a job try more configurations; its searcher knows all that was tried.

        Args:
            job_id: The job.
            num_samples: How many more.
            experiment: Of which of its experiments, if there are several.
            **options: Changes to those it was submitted with.

        Raises:
            InvalidExperimentError: it is active, its searcher has no more configurations, or a number below 1.
            UnknownNameError: it is none of this storage, or has no such experiment.
            ClusterError: nobody takes it.
        """
        job, status = self.folder(job_id), self.status(job_id)
        names = [plain["name"] for plain in job.read()["experiments"]]
        chosen = experiment or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise UnknownNameError(f"{job_id} has the experiments {', '.join(names)}; name one of them to extend it")
        plain = next(plain for plain in job.read()["experiments"] if plain["name"] == chosen)
        if num_samples < 1:
            raise InvalidExperimentError(f"num_samples must be at least 1; got {num_samples}")
        if plain["searcher"] == "grid" or plain["scheduler"] == "pbt":
            kind = "a grid" if plain["searcher"] == "grid" else "a population"
            raise InvalidExperimentError(f"{kind} has no more configurations; submit another search than {chosen}")
        return self._again(job, status, "extend", {**options, "num_samples": num_samples, "experiment": chosen})

    def _again(self, job: JobFolder, status: JobStatus, verb: str, options: Mapping[str, Any]) -> Job:
        if status.state.is_active:
            raise InvalidExperimentError(f"{job.id} is {status.state}; stop it first, or wait for its end")
        self.launcher.check()
        self._start(job, verb, {name: _plain(value) for name, value in options.items() if value is not None})
        return Job(self, job.id)

    def _start(self, job: JobFolder, verb: str, options: Mapping[str, Any]) -> None:
        attempt = job.add_attempt(verb, self.launcher.place(job), options)
        try:
            self.launcher.start(job, attempt)
        except TuneHpcError:
            job.withdraw(attempt)
            raise
        except OSError as error:
            job.withdraw(attempt)
            raise ClusterError(f"the driver of {job.id} cannot be started: {error}; free some resources") from error


class Client(JobClient):
    """Jobs on a Ray cluster.

    Args:
        address: Of the cluster's dashboard: ``http://HOST:PORT``, or ``HOST`` or ``HOST:PORT``.
        token: The cluster's; by default the one that Ray would use.
        storage: The folder of all jobs.

    Raises:
        ClusterError: an address that cannot be one.
    """

    def __init__(self, address: str, token: str | None = None, *, storage: str | Path) -> None:
        super().__init__(storage, RayJobs(address, token))


class LocalClient(JobClient):
    """Jobs as processes of this machine, which outlive whoever submitted them.

    Args:
        storage: The folder of all jobs.
    """

    def __init__(self, storage: str | Path) -> None:
        super().__init__(storage, Processes())


class InProcessClient(JobClient):
    """Jobs in a thread of this process, one after the other: for tests, and to look into what a job does.

    Args:
        storage: The folder of all jobs.
    """

    def __init__(self, storage: str | Path) -> None:
        super().__init__(storage, InProcess())


def _plain(value: Any) -> Any:
    """Return an option as JSON holds it."""
    if isinstance(value, Path):
        return str(value.absolute())
    return list(value) if isinstance(value, tuple) else value


def _copy_code(job: JobFolder, experiments: Sequence[Experiment], code: str | Path | None) -> None:
    """Copy the modules of trainables of one's own into the job's folder.

    Raises:
        FolderError: they cannot be copied.
    """
    from tune_hpc.cluster.code import copy_modules

    own = [one for one in experiments if one.trainable != TRAIN]
    try:
        copy_modules([one.to_json()["trainable"] for one in own], Path(code) if code else None, job.code)
    except OSError as error:
        raise FolderError(f"the code of {job.id} cannot be copied: {error}; name its folder with code") from error
