"""Exception hierarchy.

    TuneHpcError
    ├── InvalidConfigError (ValueError)       configuration: unknown key, value out of bounds
    ├── InvalidSpaceError (ValueError)        search space: empty choice, low >= high, non-positive bound of a log scale
    ├── InvalidExperimentError (ValueError)   experiment or flags that contradict one another
    ├── UnknownNameError (LookupError)        unknown experiment, module, attribute or column
    ├── DataUnavailableError (OSError)        data set that cannot be found, downloaded or verified
    ├── FolderError (OSError)                 experiment folder that cannot be read, written or resumed
    ├── ExportError (OSError)                 export destination that is not writable or belongs to another search
    ├── MissingPackageError (ImportError)     optional package that is not installed
    ├── ConflictError (RuntimeError)          another process is active, or the state of a search forbids the request
    ├── RequestError (ValueError)             request that the HTTP service rejects, with an HTTP status
    ├── ClusterError (ConnectionError)        Ray cluster that is unreachable or too small
    └── TrialError (RuntimeError)             work on the cluster that ended without a result

A message is one line: the wrong value, the rule and the remedy. The command line prints it without a stack trace and
exits with code 2. Each class derives from the closest built-in exception, so that ``except ValueError`` works.
"""


class TuneHpcError(Exception):
    """Base class of all errors of tune_hpc."""

    def __str__(self) -> str:
        """Return the message in one line, without the decorations of ``OSError`` and ``LookupError``."""
        return " ".join(" ".join(str(argument) for argument in self.args).split())


class InvalidConfigError(TuneHpcError, ValueError):
    """Invalid configuration of a trial."""


class InvalidSpaceError(TuneHpcError, ValueError):
    """Invalid search space."""


class InvalidExperimentError(TuneHpcError, ValueError):
    """Invalid experiment, or invalid options of a run."""


class UnknownNameError(TuneHpcError, LookupError):
    """Unknown experiment, module, attribute or column."""


class DataUnavailableError(TuneHpcError, OSError):
    """Data set that cannot be found, downloaded or verified."""


class FolderError(TuneHpcError, OSError):
    """Experiment folder that cannot be read, written or resumed."""


class ExportError(TuneHpcError, OSError):
    """Export destination that cannot be written to."""


class MissingPackageError(TuneHpcError, ImportError):
    """Optional package that is not installed."""


class ConflictError(TuneHpcError, RuntimeError):
    """Another process is active, or the state of a search forbids the request."""


class RequestError(TuneHpcError, ValueError):
    """Request that the HTTP service rejects.

    Args:
        message: The wrong value, the rule and the remedy.
        status: The HTTP status of the response.
        kind: The problem type of the response (RFC 9457), the last part of its URN.
    """

    def __init__(self, message: str, status: int = 422, kind: str = "invalid-request") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class ClusterError(TuneHpcError, ConnectionError):
    """Ray cluster that is unreachable, or too small for the request."""


class TimeLimitReached(BaseException):
    """Unwinds a trainable whose time limit is over; ``except Exception`` in a trainable does not catch it."""


class TrialError(TuneHpcError, RuntimeError):
    """Work on the cluster that ended without a result."""
