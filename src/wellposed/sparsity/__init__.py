"""Sparsity: of weights and of activations.

One module per technique; `wellposed.core.registry` finds them.
"""
