-- households with the most urgent anomalies of a span of nights, by default the last one scored
-- :first_night DATE = (SELECT max(night) FROM scores)
-- :last_night DATE = (SELECT max(night) FROM scores)
-- :limit INTEGER = 20
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
WHERE a.night BETWEEN $first_night AND $last_night AND s.night BETWEEN $first_night AND $last_night
GROUP BY household_id, h.tariff, h.acorn_group
ORDER BY p_value, evidence DESC, household_id
LIMIT $limit
