"""Too little memory is a line on standard error, not a traceback."""

from pathlib import Path

import pytest

from flows.cli import main
from tests.training_fixtures import limit_address_space


def test_out_of_memory_is_reported_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with limit_address_space(200):
        status = main(["simulate", str(tmp_path / "fleet"), "--households", "512", "--days=1000"])
    assert status == 1
    assert capfd.readouterr().err.startswith("meterwatch: too little memory: Unable to allocate")
