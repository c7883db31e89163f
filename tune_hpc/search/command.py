"""Trainable that runs an unchanged program: ``python train.py --lr {learning_rate}``.

Each trial runs the command once, as a subprocess without a shell. Metrics come from its standard output: lines that are
JSON objects, or matches of a regular expression. The program has no checkpoint, so that a resumed trial starts again.
"""

import json
import os
import re
import selectors
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tune_hpc.analysis.frames import IDENTITY, MEASURES
from tune_hpc.errors import InvalidExperimentError, TrialError
from tune_hpc.search.space.space import Space
from tune_hpc.search.stopping import StopRequest, StopRequested, TimeLimit
from tune_hpc.search.trial import Trial
from tune_hpc.storage.process import kill_session
from tune_hpc.storage.trial_file import to_jsonable

#: Names of a metric that is the step, in order of precedence.
STEP_NAMES = ("step", "epoch", "iteration")
#: Seconds between SIGTERM and SIGKILL.
GRACE_S = 10.0
#: Seconds between two checks for a stop request while the program prints nothing.
POLL_INTERVAL_S = 0.2
#: Program that runs the command as its child, and ends as it does. The kernel sends it SIGHUP when the trial process
#: dies (PR_SET_PDEATHSIG is 1), and it kills its process group: the command and its children. A ``preexec_fn`` could
#: request the signal only at the risk of a deadlock in a process with threads. Python ignores SIGPIPE.
_SUPERVISOR = """\
import ctypes, os, resource, signal, sys
parent, *words = sys.argv[1:]
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, lambda *_: os.killpg(0, signal.SIGKILL))
ctypes.CDLL(None).prctl(1, signal.SIGHUP)
if os.getppid() != int(parent):
    sys.exit()
try:
    command = os.posix_spawnp(words[0], words, os.environ)
except OSError as error:
    sys.exit(f"{words[0]}: {error.strerror}")
code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
if code >= 0:
    sys.exit(code)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if -code != signal.SIGKILL:
    signal.signal(-code, signal.SIG_DFL)
os.kill(os.getpid(), -code)
"""


@dataclass(frozen=True)
class Command:
    """A trainable that runs a program and reads metrics from its output.

    Attributes:
        template: The command. ``{name}`` is the value of a parameter, and ``{{`` and ``}}`` are braces. It is split
            like a command of a shell, but no shell runs it.
        pattern: Regular expression whose named groups are metrics; empty: lines that are JSON objects have the metrics.
        folder: Working folder of the program; default: that of this process.

    Raises:
        InvalidExperimentError: The template or the pattern is malformed.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Command, Experiment, Space
        >>> command = Command("python train.py --lr {learning_rate}", pattern="loss=(?P<loss>.+)")
        >>> space = Space({"learning_rate": tune.choice([0.1, 0.01])})
        >>> Experiment("script", space, command, metric="loss", mode="min").num_trials
        2
        >>> command.arguments({"learning_rate": 0.1})
        ['python', 'train.py', '--lr', '0.1']
    """

    template: str
    pattern: str = ""
    folder: str = field(default_factory=lambda: str(Path.cwd()))

    def __post_init__(self) -> None:
        _parse(self.template)
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise InvalidExperimentError(f"the pattern {self.pattern!r} is malformed: {error}") from None
        if self.pattern and not set(groups).difference(STEP_NAMES):
            raise InvalidExperimentError(
                f"the pattern {self.pattern!r} has no group for a metric; name one, like (?P<val_loss>[-+.eE0-9]+)"
            )

    @property
    def name(self) -> str:
        """Name for an experiment: that of the script, or of the program."""
        words = shlex.split(self.template)
        script = next((word for word in words if re.fullmatch(r"[\w./-]*\w\.[A-Za-z]\w*", word)), words[0])
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(script).stem).strip(".-") or "command"

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters in the template."""
        return list(dict.fromkeys(name for word in _parse(self.template) for _, name in word if name is not None))

    def to_json(self) -> dict[str, Any]:
        """Return the entries of experiment.json; the folder does not identify the search."""
        return {"trainable": {"template": self.template, "pattern": self.pattern}, "command_folder": self.folder}

    def check(self, space: Space, seeds: tuple[int, ...]) -> None:
        """Check that every configuration has the parameters of the template.

        Raises:
            InvalidExperimentError: A parameter is unknown, or is absent in some configurations.
        """
        for name in self.parameters:
            if name == "seed" and seeds:
                continue
            if name not in space:
                known = ", ".join([*space, *(["seed"] if seeds and "seed" not in space else [])])
                raise InvalidExperimentError(
                    f"the command has no parameter {name!r}; the space has {known or 'none'}; write {{{{ and }}}} for "
                    "braces"
                )
            if space.cases(name) and not all(name in branch.parameters for branch in space.branches()):
                raise InvalidExperimentError(
                    f"the command has {{{name}}}, which does not exist in every configuration; read it from the "
                    "environment variable TUNE_HPC_CONFIG, or add a case without a condition"
                )

    def check_folder(self) -> None:
        """Check that the working folder exists.

        Raises:
            InvalidExperimentError: It does not exist on this machine.
        """
        if not Path(self.folder).is_dir():
            raise InvalidExperimentError(
                f"the folder of the command, {self.folder}, does not exist on this machine; restore it, or start the "
                "search again with --resume in the folder of the program"
            )

    def arguments(self, config: Mapping[str, Any]) -> list[str]:
        """Return program and arguments for a configuration; values other than text are written as JSON."""
        values = {
            name: value if isinstance(value, str) else json.dumps(value, default=to_jsonable)
            for name, value in config.items()
        }
        return [
            "".join(text + (values[name] if name is not None else "") for text, name in word)
            for word in _parse(self.template)
        ]

    def metrics(self, line: str) -> tuple[dict[str, float], dict[str, str]]:
        """Return the numbers in a line of output, and values that should be numbers: null, or a match of a group."""
        if self.pattern:
            match = re.search(self.pattern, line)
            values: Any = match.groupdict() if match else {}
            values = {name: text for name, text in values.items() if text is not None}
        else:
            try:
                values = json.loads(line) if line.lstrip().startswith("{") else {}
            except (ValueError, RecursionError):
                values = {}
            values = {name: value for name, value in values.items() if value is None or type(value) in (int, float)}
        numbers: dict[str, float] = {}
        others: dict[str, str] = {}
        for name, value in values.items():
            try:
                numbers[name] = float(value)
            except (ValueError, TypeError, OverflowError):
                others[name] = "null" if value is None else repr(value)
        return numbers, others

    def __call__(
        self,
        config: Mapping[str, Any],
        report: Callable[[int, Mapping[str, float]], object],
        trial: Trial | None = None,
        stop_request: StopRequest | None = None,
        metric: str | None = None,
        time_limit: TimeLimit | None = None,
    ) -> Mapping[str, Any]:
        """Run the program, and report its metrics.

        Raises:
            TrialError: The program ends with another code than 0, or does not print the metric that ranks trials.
            StopRequested: The search stops; the program was terminated.
            TimeLimitReached: The time of the trial is over; the program was terminated.
        """
        # Ray allows a stopped trial two seconds.
        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(int(2 * GRACE_S))
        variables = {"PYTHONUNBUFFERED": "1", **os.environ}
        variables["TUNE_HPC_CONFIG"] = json.dumps(dict(config), default=to_jsonable)
        if trial:
            variables |= {"TUNE_HPC_TRIAL_ID": trial.id, "TUNE_HPC_TRIAL_FOLDER": str(trial.folder.absolute())}
        variables |= {"TUNE_HPC_SEED": str(config["seed"])} if "seed" in config else {}
        process = subprocess.Popen(
            [sys.executable, "-ISc", _SUPERVISOR, str(os.getpid()), *self.arguments(config)],
            cwd=self.folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        num_reports, last_step, last_error, names = 0, 0, "no error output", dict.fromkeys(MEASURES)
        step_names, no_number = list(STEP_NAMES), ""
        with process:
            try:
                for is_error, line in _lines(process, stop_request, time_limit or TimeLimit()):
                    print(line, file=sys.stderr if is_error else sys.stdout)
                    if is_error:
                        last_error = next(filter(None, map(str.strip, reversed(line.splitlines()))), last_error)
                        continue
                    numbers, others = self.metrics(line)
                    # A fractional epoch is no step, nor are later whole ones.
                    step_names = [name for name in step_names if name not in numbers or _is_step(numbers[name])]
                    step_name = next((name for name in step_names if name in numbers), None)
                    step = int(numbers[step_name]) if step_name else last_step + 1
                    reserved = {"step", step_name, *IDENTITY, *config}
                    if metric in numbers or metric in others:
                        no_number = others.get(metric, "")
                    if metrics := {name: number for name, number in numbers.items() if name not in reserved}:
                        num_reports, last_step = num_reports + 1, max(step, last_step)
                        names |= dict.fromkeys(metrics)
                        report(step, metrics)
            finally:
                _terminate(process)
        if code := process.returncode:
            text = f"{code} ({signal.strsignal(-code)})" if code < 0 else code
            raise TrialError(f"the command ended with code {text}: {last_error}")
        if no_number:
            raise TrialError(f"the last {metric} that the command printed is {no_number:.100}, which is no number")
        if not num_reports:
            lines = f"matches the pattern {self.pattern!r}" if self.pattern else "is a JSON object with a metric"
            raise TrialError(f'no line of the output {lines}; print one, like {{"loss": 0.5}}, or give a pattern')
        if metric and metric not in names and not metric.startswith(("best_", "selected_")):
            reported = ", ".join(name for name in names if name not in MEASURES)
            raise TrialError(f"the command printed no {metric}, which ranks the trials; its metrics are {reported}")
        return {"stop_reason": "the command ended"}


@cache
def _parse(template: str) -> list[list[tuple[str, str | None]]]:
    """Return each word of a template as parts: a text, and the name of the parameter after it, if any.

    Raises:
        InvalidExperimentError: The template is malformed or empty.
    """
    try:
        words = [list(string.Formatter().parse(word)) for word in shlex.split(template)]
    except ValueError as error:
        reason = str(error).lower()
        raise InvalidExperimentError(
            f"the command {template!r} is malformed: {reason}; write {{{{ and }}}} for braces"
        ) from None
    if not words or not any(words[0]):
        raise InvalidExperimentError("the command is empty; give a program and its arguments")
    if formatted := [name for word in words for _, name, *formats in word if any(formats)]:
        raise InvalidExperimentError(
            f"the command {template!r} has a format for {formatted[0]!r}; write {{{formatted[0]}}}, or {{{{ for a brace"
        )
    return [[(text, name) for text, name, *_ in word] for word in words]


def _is_step(value: float) -> bool:
    return value.is_integer() and 0 <= value < 2**53


def _lines(
    process: subprocess.Popen[bytes], stop_request: StopRequest | None, time_limit: TimeLimit
) -> Iterator[tuple[bool, str]]:
    """Yield each line of output, and whether it is of standard error, until the process has ended.

    Raises:
        StopRequested: The search stops.
        TimeLimitReached: The time of the trial is over.
    """
    remainders = {False: b"", True: b""}
    with selectors.DefaultSelector() as selector:
        for stream, is_error in ((process.stdout, False), (process.stderr, True)):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, is_error)
        while selector.get_map() or process.poll() is None:
            if stop_request is not None and stop_request.is_made:
                raise StopRequested
            time_limit.check()
            if not selector.get_map():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_INTERVAL_S)
                continue
            events = selector.select(POLL_INTERVAL_S)
            for key, _ in events:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                *lines, remainders[key.data] = (remainders[key.data] + chunk).split(b"\n")
                for line in lines:
                    yield key.data, line.decode(errors="replace")
            if not events and process.poll() is not None:
                break  # A process in the background still has the pipe.
    for is_error, line in remainders.items():
        if line:
            yield is_error, line.decode(errors="replace")


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a session: by SIGTERM to its group, and by SIGKILL if its leader does not end in time."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
    finally:
        kill_session(process.pid)
