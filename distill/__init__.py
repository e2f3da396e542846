"""MiniDistill: small Chinese BERT encoders by staged distillation."""

__version__ = "0.1.0"
