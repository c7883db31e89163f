"""Searchers: model-based through Optuna, and the adapter to Ray Tune."""
