"""A home small enough to work out every answer by hand.

A and D are Affluent on the standard tariff, B is in Adversity on the dynamic one, C has neither
group nor tariff. The lake holds four nights, the last two are scored:

      night   A                    B                         C           D
      30 Jan  48                   39 (from 04:30)           -           -
      31 Jan  47 (none at 01:00)   -                         -           -
      1 Feb   48, rank 2           - missing                 48, rank 1  - missing
      2 Feb   48, rank 2, flagged  10 (to 05:00) incomplete  48, rank 1  - missing

C is flagged on both scored nights.
"""

from datetime import date, datetime, timedelta

import polars as pl

from ml import schemas
from tasks import storage

NIGHTS = [date(2014, 1, 30), date(2014, 1, 31), date(2014, 2, 1), date(2014, 2, 2)]
FLAT_PROFILE_KWH = [0.5] * 48
PROFILES_KWH = {
    ("A", NIGHTS[0]): FLAT_PROFILE_KWH,
    ("A", NIGHTS[1]): [0.5, 0.5, None, *[0.5] * 45],
    ("A", NIGHTS[2]): FLAT_PROFILE_KWH,
    ("A", NIGHTS[3]): FLAT_PROFILE_KWH,
    ("B", NIGHTS[0]): [None] * 9 + [1.0] * 39,
    ("B", NIGHTS[3]): [1.0] * 10 + [None] * 38,
    ("C", NIGHTS[2]): FLAT_PROFILE_KWH,
    ("C", NIGHTS[3]): FLAT_PROFILE_KWH,
}
SCORE_ROWS = [
    ("A", NIGHTS[2], "scored", 48, 1.0, 0.5, 0.25, False, 2, None),
    ("B", NIGHTS[2], "missing", 0, None, None, None, False, None, None),
    ("C", NIGHTS[2], "cold_start", 48, 4.0, 0.001, 2.0, True, 1, "spike"),
    ("D", NIGHTS[2], "missing", 0, None, None, None, False, None, None),
    ("A", NIGHTS[3], "scored", 48, 3.0, 0.002, 1.0, True, 2, "rise"),
    ("B", NIGHTS[3], "incomplete", 10, None, None, None, False, None, None),
    ("C", NIGHTS[3], "cold_start", 48, 5.0, 0.001, 3.0, True, 1, "spike"),
    ("D", NIGHTS[3], "missing", 0, None, None, None, False, None, None),
]


def write_small_home() -> None:
    """Write the home."""
    storage.replace_reference_table("households", build_households())
    for month in (NIGHTS[0], NIGHTS[2]):
        storage.replace_month(
            month, build_household_nights().filter(pl.col("night").dt.month() == month.month)
        )
    for night in NIGHTS[2:]:
        storage.replace_night("scores", night, build_scores().filter(night=night))
        storage.replace_night("anomalies", night, build_anomalies().filter(night=night))
        storage.replace_night("nights", night, build_nights().filter(night=night))
        storage.replace_night("episodes", night, build_episodes().filter(first_night=night))
    storage.replace_ledger_entry("deliveries", "first", build_delivery())
    storage.replace_ledger_entry("quarantine", "first", build_quarantine())
    for run in build_runs().iter_slices(1):
        storage.replace_ledger_entry("runs", run["run_id"][0], run)


def build_table(schema: type, rows: list[tuple]) -> pl.DataFrame:
    """Rows in the types of a schema."""
    dtypes = {name: column.dtype for name, column in schema.columns().items()}
    return pl.DataFrame(rows, schema=dtypes, orient="row")


def build_households() -> pl.DataFrame:
    return build_table(
        schemas.Households,
        [
            ("A", "Std", "ACORN-A", "Affluent"),
            ("B", "ToU", "ACORN-P", "Adversity"),
            ("C", None, None, None),
            ("D", "Std", "ACORN-A", "Affluent"),
        ],
    )


def build_household_nights() -> pl.DataFrame:
    rows = [
        (night, household, 48 - kwh.count(None), kwh)
        for (household, night), kwh in PROFILES_KWH.items()
    ]
    return build_table(schemas.HouseholdNights, rows)


def build_scores() -> pl.DataFrame:
    rows = [
        (*row[:9], *((24.0, 20.0) if row[4] else (None, None)), row[9], "1") for row in SCORE_ROWS
    ]
    return build_table(schemas.Scores, rows)


def build_anomalies() -> pl.DataFrame:
    rows = [
        (
            household,
            night,
            datetime.combine(night, datetime.min.time()) + timedelta(hours=8),
            datetime.combine(night, datetime.min.time()) + timedelta(hours=10),
            FLAT_PROFILE_KWH,
            [0.4] * 48,
            [1.0] * 48,
            4.0,
            score,
            p_value,
            reason,
            rank,
            "1",
        )
        for household, night, _, _, score, p_value, _, flagged, rank, reason in SCORE_ROWS
        if flagged
    ]
    return build_table(schemas.Anomalies, rows)


def build_nights() -> pl.DataFrame:
    """A was flagged on the last night, C on both, which is one episode."""
    return build_table(
        schemas.Nights,
        [
            (NIGHTS[2], 2, 1, 1, 500.0, 3.0, 0.1, 1.0, 1.0, 1000, "1"),
            (NIGHTS[3], 2, 2, 1, 500.0, 3.0, -0.1, 1.1, 1.0, 1000, "1"),
        ],
    )


def build_episodes() -> pl.DataFrame:
    return build_table(
        schemas.Episodes,
        [
            ("A", NIGHTS[3], NIGHTS[3], 1, 4.0, "rise", False),
            ("C", NIGHTS[2], NIGHTS[3], 2, 8.0, "spike", True),
        ],
    )


def build_delivery() -> pl.DataFrame:
    """336 rows kept (A 191, B 49, C 96) and 3 quarantined."""
    first, last = datetime(2014, 1, 30), datetime(2014, 2, 2, 23, 30)
    row = ("first", "block.csv", datetime(2014, 2, 3, 3, 30), 339, 336, 3, 0, 3, first, last)
    return build_table(schemas.Deliveries, [row])


def build_quarantine() -> pl.DataFrame:
    return build_table(
        schemas.Quarantine,
        [
            ("A", datetime(2014, 1, 31, 1), "Null", "null", "block.csv"),
            ("A", datetime(2014, 1, 30), " 0.5 ", "duplicate", "block.csv"),
            ("B", datetime(2014, 1, 30, 5), " 1.0 ", "duplicate", "block.csv"),
        ],
    )


def build_runs() -> pl.DataFrame:
    begin, end = datetime(2014, 2, 3, 3, 30), datetime(2014, 2, 3, 3, 30, 1, 500_000)
    later, nights = timedelta(minutes=1), (NIGHTS[2], NIGHTS[3])
    return build_table(
        schemas.Runs,
        [
            ("r1", "ingest", begin, end, "completed", None, None, 339, 336, 3, None, None),
            (
                "r2",
                "score",
                begin + later,
                end + later,
                "completed",
                *nights,
                *[None] * 3,
                "1",
                None,
            ),
        ],
    )
