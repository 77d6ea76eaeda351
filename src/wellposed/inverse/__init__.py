"""Inverse problems: restoring what was measured with noise, or only in part."""
