"""Searching with Ray Tune: spaces, experiments, the tuner."""
