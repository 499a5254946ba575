"""A run to predictions; imports without torch and transformers."""
