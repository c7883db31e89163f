"""Experiment folder layout, trial files, local and S3 file access, process liveness."""
