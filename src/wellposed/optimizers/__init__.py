"""Optimizers: how gradients become updates.

One module per technique; `wellposed.core.registry` finds them.
"""
