"""Objective, loop, checkpoints, layer matching."""
