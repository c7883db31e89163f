"""Strong and weak scaling: training time on several workers, measured with Ray Train."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune_hpc.scaling.measurement import measure

__all__ = ["measure"]


def __getattr__(name: str) -> Any:
    # A lazy import: ``measure`` needs Ray.
    if name != "measure":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tune_hpc.scaling.measurement import measure

    return measure
