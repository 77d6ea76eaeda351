"""Diffusion: regularisation of generative denoising.

One module per technique; `wellposed.core.registry` finds them.
"""
