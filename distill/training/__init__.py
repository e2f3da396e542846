"""A stage: layer matches, objective, loop, checkpoints."""
