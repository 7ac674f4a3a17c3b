"""Limits that settings take as defaults; imported without the second that table schemas take."""

from typing import Final

SUPPLY_LIMIT_KWH: Final = 12.0
"""Most that a household's supply can deliver in a half-hour: 100 A single phase at 240 V, 24 kW."""
MIN_READINGS: Final = 36
"""Readings, of 48, that a night needs to be judged at all: three quarters of the day."""
