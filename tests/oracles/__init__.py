"""Independent oracles: a float64 numpy recurrence written from the equations, and runners of the official packages.

Nothing in here imports the project under test.
"""
