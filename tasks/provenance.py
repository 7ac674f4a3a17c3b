"""Where a model comes from: which readings, which code."""

import hashlib
from importlib.metadata import version as package_version
from pathlib import Path
from subprocess import SubprocessError, run

import numpy as np

from ml.fleet import Fleet


def fingerprint_fleet(fleet: Fleet) -> str:
    """A digest of all that a training reads."""
    digest = hashlib.sha256()
    digest.update(f"{fleet.household_ids} {fleet.nights[0]} {fleet.nights[-1]}".encode())
    for part in (fleet.kwh, fleet.condition_group, fleet.conditions):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def read_code_version() -> dict[str, str]:
    """The package's version, and the commit where there is one."""
    tags = {"package": package_version("meterwatch")}
    here = Path(__file__).parent
    try:
        command = ("git", "-C", str(here), "describe", "--always", "--dirty")
        described = run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, SubprocessError):
        return tags
    return tags | {"git": described.stdout.strip()}
