"""Benchmarks: one script per question, and in ``peers`` the same work with other tools."""
