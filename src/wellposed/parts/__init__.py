"""Parts: the mathematics that several techniques share, one idea a file."""
