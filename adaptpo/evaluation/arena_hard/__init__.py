"""Arena-Hard v0.1 and v2.0: two swapped games against a baseline for each prompt."""
