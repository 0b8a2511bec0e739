"""Tables that compare methods in the sandbox over several worlds.

`definitions` lists the tables, `table` and `row` define one, `papers` holds the papers' figures, and `cells` plans the
runs that rows need; `processes` and `work` execute them, `measure` and `labels` evaluate one run, `statistics` and
`summary` combine worlds and runs; `text` formats columns, `view` and `stage_view` arrange tables that have other lines
than one a row, `terminal`, `plot` and `docs` show them; `command` is `adaptpo sandbox table`.
"""
