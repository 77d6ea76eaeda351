"""Batch styles standardization."""

__all__: list[str] = []
