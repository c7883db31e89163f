"""Searchers: grid, random, quasi-random, and model-based through Optuna."""
