"""newsdesk: fine-tune a text encoder with LoRA to classify news, evaluate it honestly, deploy it."""

__version__ = "0.1.0"
