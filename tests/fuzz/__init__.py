"""Fuzz tests: arbitrary input gives a result or an error of tune_hpc in one line."""
