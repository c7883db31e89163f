"""The histories of an experiment's trials: each as it was read, put together for those that are asked for."""

from collections.abc import Collection, Mapping
from functools import cached_property

import pandas as pd
import pyarrow as pa


class LazyHistory:
    """What trials reported, in long form once somebody asks: whoever looks at a few curves need not join them all.

    Args:
        frame: Of trials whose histories are in one frame already: ``trial_id``, ``step``, one column per metric.
        tables: Of the others, by trial: ``step``, one column per metric.
    """

    def __init__(self, frame: pd.DataFrame, tables: Mapping[str, pa.Table]) -> None:
        self._frames = [frame] if len(frame) or not tables else []
        self._tables = tables

    @cached_property
    def columns(self) -> list[str]:
        """``trial_id``, ``step`` and every metric, as they were reported first."""
        told = [str(name) for frame in self._frames for name in frame] or ["trial_id"]
        return list(dict.fromkeys([*told, *(name for table in self._tables.values() for name in table.column_names)]))

    @cached_property
    def num_bytes(self) -> int:
        """The memory that they take, about."""
        frames = sum(int(frame.memory_usage(deep=True).sum()) for frame in self._frames)
        # Of eight bytes each; to ask every table would take longer than to read a few of them anew.
        return frames + sum(8 * table.num_rows * table.num_columns for table in self._tables.values())

    def taken(self, metric: str) -> set[str]:
        """Return the trials that reported a metric."""
        trials = {
            trial_id
            for trial_id, table in self._tables.items()
            if metric in table.column_names and table[metric].null_count < len(table)
        }
        for frame in self._frames:
            if metric in frame:
                trials.update(frame.loc[frame[metric].notna(), "trial_id"].unique())
        return trials

    def of(self, trials: Collection[str] | None = None) -> pd.DataFrame:
        """Return the histories of some trials, or of all: ``columns``, one row per trial and step."""
        frames, tables = list(self._frames), dict(self._tables)
        if trials is not None:
            chosen = set(trials)
            frames = [frame[frame["trial_id"].isin(chosen)] for frame in frames]
            tables = {trial_id: table for trial_id, table in tables.items() if trial_id in chosen}
        if not frames and not tables:
            tables = {trial_id: table.slice(length=0) for trial_id, table in self._tables.items()}
        if tables:
            # Joined as Arrow tables and converted once: thousands of small data frames would take ten times as long.
            joined = [_named(trial_id, table) for trial_id, table in tables.items()]
            frames.append(pa.concat_tables(joined, promote_options="permissive").to_pandas())
        df = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        return df if list(df) == self.columns else df.reindex(columns=self.columns)


def _named(trial_id: str, table: pa.Table) -> pa.Table:
    trial_ids = pa.repeat(pa.scalar(trial_id, pa.large_string()), len(table))
    return table.replace_schema_metadata(None).add_column(0, "trial_id", trial_ids)
