"""Transport: optimal couplings and maps between distributions.

One module per technique; `wellposed.core.registry` finds them. The entropic solver they share is `parts.sinkhorn`.
"""
