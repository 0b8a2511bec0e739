"""A task for a real language model whose answers code can check: a question with two rules for the answer's form.

`rules` holds the rules, `questions` the prompts, `writers` the offline answers, `grading` the reward that trains and
the judge that only measures; `build` writes all of it as ordinary data files and a recipe. `world` makes it a world of
the tables, and `study` is the table on it; `demo` aligns one model.
"""
