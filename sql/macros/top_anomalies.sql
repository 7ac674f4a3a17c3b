-- the most urgent anomalies of a night, by default the last one scored
CREATE MACRO top_anomalies(of_night DATE := NULL, n INTEGER := 20) AS TABLE
SELECT
    a.rank,
    a.household_id,
    h.tariff,
    h.acorn_group,
    a.reason,
    e.first_night AS since,
    a.start_utc,
    a.end_utc,
    a.excess_kwh,
    s.actual_kwh,
    s.expected_kwh,
    a.score,
    a.p_value,
    s.evidence
FROM anomalies AS a
JOIN scores AS s USING (household_id, night)
LEFT JOIN households AS h USING (household_id)
LEFT JOIN episodes AS e
    ON e.household_id = a.household_id AND a.night BETWEEN e.first_night AND e.last_night
WHERE
    a.night = coalesce(of_night, getvariable('last_scored_night'))
    AND s.night = coalesce(of_night, getvariable('last_scored_night'))
ORDER BY a.rank
LIMIT n;
