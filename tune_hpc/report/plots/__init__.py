"""Figures of one experiment: one module per kind."""
