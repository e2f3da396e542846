"""Tasks and fine-tuning."""
