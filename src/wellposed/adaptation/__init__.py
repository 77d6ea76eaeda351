"""Adaptation: to a new distribution, a new task or a wish to forget, after training.

One module per technique; `wellposed.core.registry` finds them. What adapts a model takes it as it is
and gives it back.
"""
