"""Tables that compare methods over several worlds.

`world` is what a table needs of a world, and `sandbox_world` the sandbox's; the task on a real language model is
another, in `adaptpo.sandbox.instructions`. `definitions` lists the sandbox's tables, `table` and `row` define one,
`papers` holds the papers' figures, `options` says what is asked of a table, and `cells` plans the runs that rows need;
`processes` and `work` execute them, `measure` and `labels` evaluate one run, `statistics` and `summary` combine worlds
and runs; `text` formats columns, `view` and `stage_view` arrange tables that have other lines than one a row,
`terminal`, `plot` and `docs` show them; `command` runs a table from its options to its files.
"""
