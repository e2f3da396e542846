"""Text to masked batches: segment, align, pack, mask, order."""
