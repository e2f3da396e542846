"""The embedded sample world: generated Chinese text, its word boundaries, and four labelled tasks."""

from distill.sample.write import SAMPLE_VERSION, write_sample_world

__all__ = ["SAMPLE_VERSION", "write_sample_world"]
