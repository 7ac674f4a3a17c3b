"""Says from which readings and which code a model comes."""

import hashlib
from importlib.metadata import version as package_version
from pathlib import Path
from subprocess import SubprocessError, run

import numpy as np

from ml.fleet import Fleet


def fingerprint_fleet(fleet: Fleet) -> str:
    """Return 16 hexadecimal digits of a SHA-256 over all that a training reads of a fleet.

    Households, the span of nights, readings, and conditions with the household each belongs to. 64
    bits tell any number of trainings apart.
    """
    digest = hashlib.sha256()
    digest.update(f"{fleet.household_ids} {fleet.nights[0]} {fleet.nights[-1]}".encode())
    for part in (fleet.kwh, fleet.condition_group, fleet.conditions):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def read_code_version() -> dict[str, str]:
    """Return tags: `package`, its version, and `git`, the commit of a checkout if it is one."""
    tags = {"package": package_version("meterwatch")}
    directory = Path(__file__).parent
    command = ("git", "-C", str(directory), "describe", "--always", "--dirty")
    try:
        # 10 s: a slow file system must not hold up a training for the sake of a tag.
        described = run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, SubprocessError):
        return tags
    return tags | {"git": described.stdout.strip()}
