-- households with the most urgent anomalies of a span of nights, by default the last one scored
CREATE MACRO top_households(
    from_night DATE := NULL,
    to_night DATE := NULL,
    n INTEGER := 20
) AS TABLE
SELECT
    household_id,
    h.tariff,
    h.acorn_group,
    arg_min(a.reason, (a.p_value, a.night)) AS reason,
    min(a.night) AS first_night,
    max(a.night) AS last_night,
    count(*) AS nights,
    sum(a.excess_kwh) AS excess_kwh,
    min(a.p_value) AS p_value,
    max(s.evidence) AS evidence
FROM anomalies AS a
JOIN scores AS s USING (household_id, night)
LEFT JOIN households AS h USING (household_id)
WHERE
    a.night >= coalesce(from_night, getvariable('last_scored_night'))
    AND a.night <= coalesce(to_night, getvariable('last_scored_night'))
    AND s.night >= coalesce(from_night, getvariable('last_scored_night'))
    AND s.night <= coalesce(to_night, getvariable('last_scored_night'))
GROUP BY household_id, h.tariff, h.acorn_group
ORDER BY p_value, evidence DESC, household_id
LIMIT n;
