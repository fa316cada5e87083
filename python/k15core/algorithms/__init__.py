"""Policy optimisation: one algorithm, one class, one file."""
