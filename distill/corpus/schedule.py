"""Values that are functions of the optimiser step alone, so that a resumed run has the same."""

import math


def scheduled_value(step: int, *, steps: int, start: float, end: float, shape: str) -> float:
    """The value at a step (from 0): `start` at step 0, `end` at step `steps` - 1.

    Masking much first and less later: https://arxiv.org/abs/2305.15096. Cosine is half a wave, flat at both ends.
    """
    progress = min(1.0, step / max(1, steps - 1))
    if shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * progress
