"""Benchmarks: generate answers, have them judged, score the verdicts, compare runs.

`suite` says what a benchmark is, `suites` lists them; each has its folder. `generating`, `judging` and `scoring` are
the three steps, `folder` is what they keep on disk, `references` are what a judge compares with. `result` and
`intervals` are what comes of it. `comparing` sets results side by side, `cases` shows answers side by side, `tasks`
runs lm-eval.
"""
