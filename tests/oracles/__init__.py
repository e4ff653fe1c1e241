"""Independent oracles: a float64 numpy recurrence written from the equations, and runners of the official packages.

`recurrence` cells and small parts; `v1`, `large` blocks; `files` tensors and configs; `reference` whole models.
`cases` the shapes; `randomness` the weights; `official` makes checkpoints and runs the official models.
Nothing in here imports the project under test.
"""
