"""Alignment: language models that learn from preferences and rewards.

One module per technique; `wellposed.core.registry` finds them. The tasks are `Prefer` and `Policy`.
"""
