"""Tables that compare methods in the sandbox over several worlds.

`definitions` says which rows there are, `rows` what a row is, `cells` which runs they need; `processes` and `work` run
them, `measure` reads one, `statistics` and `summary` put seeds together; `terminal`, `plot`, `docs` and `record` write
the result; `command` is `adaptpo sandbox table`.
"""
