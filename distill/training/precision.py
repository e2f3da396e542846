"""Which arithmetic a stage uses."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from distill.errors import InputError

Autocast = Callable[[], AbstractContextManager]
"""Makes a context in which matrix products use another precision."""


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: "auto" is bf16 where the processor or GPU has units for it, else float32.

    Raises:
        InputError: fp16 without a CUDA device; it needs loss scaling and fast kernels that only CUDA has.
    """
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"precision fp16 needs an NVIDIA GPU, this machine trains on {device.type}; use auto")
    if precision == "auto":
        return torch.bfloat16 if has_bf16_units(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than float32's here."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("amx_tile") or capabilities.get("avx512_bf16"))
    return False


def autocast_for(dtype: torch.dtype, device: torch.device) -> Autocast:
    """A maker of contexts in which matrix products use `dtype`."""
    if dtype == torch.float32:
        return nullcontext
    return functools.partial(torch.autocast, device.type, dtype=dtype)
