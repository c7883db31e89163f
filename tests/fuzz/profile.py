"""Hypothesis profiles of the fuzz tests: a few fixed examples, or with FUZZ_PROFILE=slow many random ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

#: Number of examples of the slow profile for each example of the quick one.
FACTOR = 20
IS_SLOW = os.environ.get("FUZZ_PROFILE") == "slow"
_COMMON = {"deadline": 20_000, "suppress_health_check": list(HealthCheck)}
settings.register_profile("fuzz_quick", derandomize=True, database=None, **_COMMON)
settings.register_profile("fuzz_slow", print_blob=True, **_COMMON)
_PROFILE = settings.get_profile("fuzz_slow" if IS_SLOW else "fuzz_quick")


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Restore a file after the block."""
    before = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(before)


def examples(number: int) -> settings:
    """Return the settings of a fuzz test with a number of examples in the quick profile."""
    return settings(_PROFILE, max_examples=number * (FACTOR if IS_SLOW else 1))


def check_message(error: Exception, *files: Path) -> None:
    """Check that an error has one line, which names one of some files if there are any."""
    text = str(error)
    assert text, repr(error)
    assert "\n" not in text, text
    assert not files or any(str(file) in text for file in files), text
