"""Errors of trials as the columns ``stop_reason`` and ``error`` of their rows."""

import re
import traceback
from pathlib import Path

from tune_hpc.search.user_code import is_in_installation
from tune_hpc.storage.trial_file import to_error_text

#: Reasons of the end of a failed trial.
EXCEPTION, OUT_OF_MEMORY, PROCESS_DIED = "exception", "out of memory", "process died"
#: Folder of this project's code.
_OUR_CODE = Path(__file__).parents[1]
#: Line of a Python exception in a report of Ray, except for Ray's own, which wrap others.
_EXCEPTION_LINE = re.compile(r"^(?!ray\.)(?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)(?:: .*)?$", re.MULTILINE)


def describe_exception(error: BaseException) -> dict[str, str]:
    """Return the columns of a trial whose trainable raised an exception.

    The text has the location: the last frame in the user's code, or else the last one.
    """
    text = to_error_text(traceback.format_exception_only(error)[-1])
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if not _is_of_installation(frame.filename)), frames[-1])
    is_out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return {
        "stop_reason": OUT_OF_MEMORY if is_out_of_memory else EXCEPTION,
        "error": f"{text} (in {frame.name}, {Path(frame.filename).name} line {frame.lineno})",
    }


def describe_death(report: str) -> dict[str, str]:
    """Return the columns of a trial on whose process Ray reports, without Ray's identifiers."""
    if exceptions := _EXCEPTION_LINE.findall(report):
        return {"stop_reason": EXCEPTION, "error": f"{to_error_text(exceptions[-1])}; see the log of the trial"}
    reason = PROCESS_DIED
    if "low on memory" in report or "OutOfMemory" in report:
        reason = OUT_OF_MEMORY
        cause = "its node is low on memory, so that Ray killed it; run fewer trials at once"
    else:
        detail = report.rpartition("Worker exit detail:")[2].partition("Some common causes")[0].strip()
        cause = detail.splitlines()[-1].strip().rstrip(".") if detail else "Ray gives no reason"
        cause += "" if "exit code" in detail else "; lack of memory is the usual cause"
    return {"stop_reason": reason, "error": f"the trial's process died: {cause}; see the log of the trial"}


def is_device_lost(error: BaseException) -> bool:
    """Return whether a GPU's state may be damaged: the process must end, or all its later trials would fail."""
    # The text of an exception may raise another one, which this function catches.
    text = traceback.format_exception_only(error)[-1]
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in text


def _is_of_installation(filename: str) -> bool:
    """Return whether a source file belongs to Python, an installed package or this project."""
    is_ours = Path(filename).is_relative_to(_OUR_CODE)
    return is_ours or filename.startswith("<frozen ") or is_in_installation(filename)
