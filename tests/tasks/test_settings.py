"""Settings come from the environment, and a bad value is named in one line."""

from pathlib import Path

import pytest

from ml.errors import UserError
from tasks.settings import Settings, get_settings


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_changed_environment_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for budget in (5.0, 7.0):
        monkeypatch.setenv("METERWATCH_ALERT_BUDGET", str(budget))
        assert get_settings().alert_budget == budget


def test_landing_directory_is_in_the_home_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERWATCH_HOME", "there")
    assert get_settings().landing_dir == Path("there/landing")
    monkeypatch.setenv("METERWATCH_LANDING", "elsewhere")
    assert get_settings().landing_dir == Path("elsewhere")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALERT_BUDGET", "0"), ("MIN_READINGS", "49"), ("ENGINE", "abacus"), ("DEVICES", "none")],
)
def test_value_out_of_bounds_is_named_with_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"METERWATCH_{name}", value)
    with pytest.raises(UserError, match=f"^METERWATCH_{name}: .*{value}") as raised:
        get_settings()
    assert "\n" not in str(raised.value)
