"""Encoders: their folders, weights and vocabularies."""
