"""Side-by-side measurements: one script per question, in ``peers`` the same work done in other ways."""
