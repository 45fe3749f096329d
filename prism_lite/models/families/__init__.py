"""Architectures, one file each: all that the rest of the program asks of a model's inside."""
