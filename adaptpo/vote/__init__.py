"""A blind vote between the responses of two runs, in the browser."""
