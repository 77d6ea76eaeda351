"""RandAugment."""

__all__: list[str] = []
