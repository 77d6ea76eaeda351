"""Tasks: what is learned. Each is a forward with named outputs and a loss with one value per sample."""

from .classify import Classify

__all__ = ["Classify"]
