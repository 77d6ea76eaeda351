"""Smoothness: of the function, and of the loss over weights.

One module per technique; `wellposed.core.registry` finds them.
"""
