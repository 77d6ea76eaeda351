"""Weights: penalties, norms and parametrisations of parameters.

One module per technique; `wellposed.core.registry` finds them.
"""
