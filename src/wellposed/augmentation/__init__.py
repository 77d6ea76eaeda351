"""Augmentation: what the data show.

One module per technique; `wellposed.core.registry` finds them.
"""
