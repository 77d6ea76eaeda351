"""Applications: what regularised models are good for outside their own training.

One module per technique; `wellposed.core.registry` finds them.
"""
