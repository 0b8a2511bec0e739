"""Boundary measurement (the alignment-stages paper, Algorithm 1): which data does this policy need now?

`preference` queries a preference model; `tally` counts its answers; `score` computes the boundary score, its interval
and the decision; `groups` computes separate scores for groups of prompts with similar wording; `diagnostics` adds the
paper's other diagnostics, and `words` describes the result. `adaptpo.pipeline.boundary_measure` samples and compares in
a run directory; `adaptpo.cli.stage` is the command.
"""
