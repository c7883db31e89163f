"""The processes that the benchmarks start: the same work with tune_hpc, by a plain loop, with Optuna, on Ray Tune."""
