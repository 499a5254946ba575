"""Named base models to encoder + LoRA to adapter files."""
