"""Tasks: fine-tuning on them, grids, speed, and what is exported."""
