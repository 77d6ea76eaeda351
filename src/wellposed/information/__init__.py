"""Information: entropies, divergences and mutual information, measured on samples or trained on.

One module per technique; `wellposed.core.registry` finds them. Divergences and critics are in `parts`.
"""
