"""Objectives: what the loss rewards.

One module per technique; `wellposed.core.registry` finds them.
"""
