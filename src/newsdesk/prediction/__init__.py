"""A run or exported model to predictions; imports without torch and transformers."""
