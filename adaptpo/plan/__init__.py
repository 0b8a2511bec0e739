"""What a run will take, before it is started: `adaptpo plan`."""
