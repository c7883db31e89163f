"""Every error that tune_hpc raises on purpose, in one tree.

    TuneHpcError
    ├── InvalidConfigError (ValueError)       a trial's configuration: unknown key, value out of bounds
    ├── InvalidSpaceError (ValueError)        a search space: empty choice, low >= high, log of a non-positive bound
    ├── InvalidExperimentError (ValueError)   an experiment that contradicts itself, or flags that do
    ├── UnknownNameError (LookupError)        no such experiment, module, attribute or column
    ├── DataUnavailableError (OSError)        a data set that cannot be found, fetched or verified
    ├── FolderError (OSError)                 an experiment folder that cannot be read, written or taken over
    ├── ExportError (OSError)                 a place of another tool that cannot be written to, or is another search's
    ├── MissingPackageError (ImportError)     a package that is needed for what was asked, and is not installed
    ├── ConflictError (RuntimeError)          another process was first, or the state of a search forbids the request
    ├── RequestError (ValueError)             a request that the HTTP service refuses; it has an HTTP status
    ├── ClusterError (ConnectionError)        a Ray cluster that cannot be reached, or cannot hold what was asked
    └── TrialError (RuntimeError)             work on the cluster that ended before it gave its result

Each message is one line: the rule, the value that broke it, and the remedy. The command line prints it without a
stack trace and exits with code 2. Each class is also the nearest builtin, so that ``except ValueError`` works.
"""


class TuneHpcError(Exception):
    """Base of all errors that tune_hpc raises on purpose."""

    def __str__(self) -> str:
        """Return the message alone (``OSError`` and ``LookupError`` would decorate it)."""
        return " ".join(str(argument) for argument in self.args)


class InvalidConfigError(TuneHpcError, ValueError):
    """A trial's configuration breaks a rule."""


class InvalidSpaceError(TuneHpcError, ValueError):
    """A search space breaks a rule."""


class InvalidExperimentError(TuneHpcError, ValueError):
    """An experiment, or the way it is asked to run, contradicts itself."""


class UnknownNameError(TuneHpcError, LookupError):
    """A name that leads nowhere: experiment, module, attribute, column."""


class DataUnavailableError(TuneHpcError, OSError):
    """A data set that cannot be found, fetched or verified."""


class FolderError(TuneHpcError, OSError):
    """An experiment folder that cannot be read, written or taken over."""


class ExportError(TuneHpcError, OSError):
    """A place of another tool that cannot be written to."""


class MissingPackageError(TuneHpcError, ImportError):
    """A package that is needed for what was asked is not installed."""


class ConflictError(TuneHpcError, RuntimeError):
    """Another process was first, or the state of a search forbids the request."""


class RequestError(TuneHpcError, ValueError):
    """A request that the HTTP service refuses.

    Args:
        message: The rule, the value and the remedy.
        status: The HTTP status of the response.
        kind: The problem type of the response (RFC 9457), the last part of its URN.
    """

    def __init__(self, message: str, status: int = 422, kind: str = "invalid-request") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class ClusterError(TuneHpcError, ConnectionError):
    """A Ray cluster that cannot be reached, or that cannot hold what was asked of it."""


class TrialError(TuneHpcError, RuntimeError):
    """Work on the cluster that ended before it gave its result."""
