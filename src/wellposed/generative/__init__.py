"""Generative: autoencoders, latent codes, adversarial games and likelihoods.

One module per technique; `wellposed.core.registry` finds them.
"""
