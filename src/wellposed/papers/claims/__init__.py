"""One module per paper, named by its id with underscores, that defines ``CLAIM``."""
