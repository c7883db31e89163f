"""Experiments of the report's exercises, with the published numbers.

Each module defines one ``Experiment`` per stage and ``experiments``, all of them in the order of the report. They are
registered through the entry-point group ``tune_hpc.experiments``.

    from search_spaces import exercise3
    faster = exercise3.learning_rate.with_values({"optimizer": "nesterov"})
"""
