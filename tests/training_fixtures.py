"""What tests of training share: quick parameters, equal weights, an address space with an end."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ml.training.parameters import FitParameters
from tests import fleets

MIN_READINGS = 36


def build_quick_parameters(model: str = fleets.TEST_MODEL, **overrides: float) -> FitParameters:
    quick = {"max_epochs": 2, "batch_size": 64, "epoch_size": 512, "validation_size": 128}
    return FitParameters(model=model, **(quick | overrides))


@contextmanager
def limit_address_space(extra_mb: int) -> Iterator[None]:
    """Let this process take so many MB more of address space than it has."""
    kilobytes = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((kilobytes << 10) + (extra_mb << 20), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def have_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
