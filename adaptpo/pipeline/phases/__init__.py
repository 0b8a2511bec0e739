"""The phases of a run. Each reads earlier phases' files from the run directory, writes its own, and returns counts."""
