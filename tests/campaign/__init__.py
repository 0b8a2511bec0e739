"""Campaigns: thousands of seeded faults, which the tests run a slice of. `python -m tests.campaign --help`."""
