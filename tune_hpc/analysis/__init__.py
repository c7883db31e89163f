"""What comes of the trials: frames, tables, figures, the report. Nothing here imports torch or Ray."""
