"""Which lines of the code could be wrong without a test falling: change them one at a time and look.

    python -m tests.mutation --modules sampling,verify --budget 300 --seed 0
    python -m tests.mutation --removals

`mutants` knows what to change, `lines` which tests run a line, `judge` runs tests on changed code without touching the
source tree, `removals` lists protections that once could be removed unseen.
"""
