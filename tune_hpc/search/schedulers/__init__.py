"""Schedulers: ASHA, population-based training, and those of Ray Tune."""
