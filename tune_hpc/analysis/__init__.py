"""Results and statistics: frames, aggregation, comparisons and checks, without torch and Ray."""
