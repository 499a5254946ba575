"""Where named things come from: the cache, the Hugging Face Hub, PyPI; every file checked before use."""
