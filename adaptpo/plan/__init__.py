"""Estimates what a run takes before it starts: `adaptpo plan`."""
