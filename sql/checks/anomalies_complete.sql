-- an anomaly has its 48 half-hours and begins and ends within its night
SELECT
    night,
    household_id,
    len(actual_kwh) AS n_actual,
    len(expected_kwh) AS n_expected,
    len(half_hour_score) AS n_half_hour_scores,
    start_utc,
    end_utc
FROM anomalies
WHERE night >= $since AND NOT coalesce(
    len(actual_kwh) = 48
    AND len(expected_kwh) = 48
    AND len(half_hour_score) = 48
    AND night <= start_utc
    AND start_utc < end_utc
    AND end_utc <= night + INTERVAL 1 DAY,
    false
)
ORDER BY night, household_id
