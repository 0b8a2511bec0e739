"""Refusal on XSTest: how often safe prompts are refused, and how often unsafe ones are."""
