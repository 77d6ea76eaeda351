"""Quantisation and low rank: nets that stay good with few bits or small factors.

One module per technique; `wellposed.core.registry` finds them.
"""
