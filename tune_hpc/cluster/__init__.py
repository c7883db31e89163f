"""Where a search runs when not here: in the allocation of a batch system."""
