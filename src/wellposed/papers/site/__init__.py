"""The generated part of the documentation: a page for every paper, made from its code, its claim and its evidence.

Nothing here is imported by the library; ``mkdocs.yml`` names ``hook.py``, which adds the pages to a build in memory.
"""
