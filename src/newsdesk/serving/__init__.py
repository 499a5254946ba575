"""Exported models and runs to HTTP: the micro-batcher, the models that are served, and the protocols."""
