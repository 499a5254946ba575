"""A run + examples to numbers: figures, a baseline beside them, tables."""
