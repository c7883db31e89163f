"""Search spaces, and samplers of their configurations."""
