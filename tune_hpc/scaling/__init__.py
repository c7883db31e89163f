"""Timing one configuration on several workers, with Ray Train."""
