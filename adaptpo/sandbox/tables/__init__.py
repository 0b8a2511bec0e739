"""Tables that compare methods in the sandbox over several worlds.

`definitions` says which rows there are, `rows` what a row is, `papers` whose figures stand beside it, `cells` which
runs they need; `processes` and `work` run them, `measure` and `labels` read one, `statistics` and `summary` put seeds
together; `text` makes columns of that, `terminal`, `plot` and `docs` show them; `command` is `adaptpo sandbox table`.
"""
