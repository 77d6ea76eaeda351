"""Science: models that keep physical laws, and differential equations as layers.

One module per technique; `wellposed.core.registry` finds them.
"""
