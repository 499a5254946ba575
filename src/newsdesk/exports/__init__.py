"""A run to an exported model, checked against the run."""
