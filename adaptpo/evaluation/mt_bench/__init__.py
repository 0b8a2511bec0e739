"""MT-Bench: ratings from 1 to 10 of both turns of 80 conversations."""
