-- a household night by night: what it used, what was expected, how unusual that was
CREATE MACRO household_history(
    of_household VARCHAR,
    from_night DATE := NULL,
    to_night DATE := NULL
) AS TABLE
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
FROM scores AS s
WHERE
    s.household_id = of_household
    AND night >= coalesce(from_night, DATE '-infinity')
    AND night <= coalesce(to_night, DATE 'infinity')
ORDER BY night;
