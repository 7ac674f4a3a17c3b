-- a household night by night: what it used, what was expected, how unusual that was
-- :household_id VARCHAR
-- :first_night DATE = NULL
-- :last_night DATE = NULL
SELECT
    night,
    status,
    n_readings,
    actual_kwh,
    expected_kwh,
    score,
    p_value,
    evidence,
    rank,
    is_anomaly,
    reason,
    model_version
FROM scores
WHERE
    household_id = $household_id
    AND night >= coalesce($first_night, DATE '-infinity')
    AND night <= coalesce($last_night, DATE 'infinity')
ORDER BY night
