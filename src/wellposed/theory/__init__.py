"""Theory: diagnostics of your own model or data, and predictions to hold them against.

One module per study; `wellposed.core.registry` finds them.
"""
