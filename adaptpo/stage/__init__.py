"""Boundary measurement (the alignment-stages paper, Algorithm 1): which data does this policy need now?

`preference` asks a preference model; `tally` counts its answers; `score` says what they mean and how sure that is;
`measure` samples and compares in a run directory, of training too; `groups` gives prompts of similar wording a score of
their own. `candidates` and `diagnostics` add what the paper looks at beside the score; `command` is `adaptpo stage`,
and `words` says what it found.
"""
