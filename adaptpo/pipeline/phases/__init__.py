"""The phases of a run. Each reads what earlier phases left in the run directory, writes its own, and returns counts."""
