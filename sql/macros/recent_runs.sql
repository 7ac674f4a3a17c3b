-- the most recent runs
CREATE MACRO recent_runs(n INTEGER := 20) AS TABLE
SELECT
    started_utc,
    verb,
    state,
    round(date_diff('millisecond', started_utc, finished_utc) / 1000, 1) AS seconds,
    first_night,
    last_night,
    rows_in,
    rows_kept,
    rows_quarantined,
    model_version,
    "message"
FROM runs
ORDER BY started_utc DESC, run_id DESC
LIMIT n;
