"""The campaign: faults put into the running program under load, and what must hold all the same.

Every test is a row of docs/reliability.md: it says which fault, what is promised, how often
that was tried and how often it did not hold. `pytest tests/faults` runs each of them small, `make
faults` in full; the latter writes what it found to tests/faults/results, from which
`python -m tests.faults.report` makes the table.
"""
