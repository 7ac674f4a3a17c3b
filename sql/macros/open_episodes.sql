-- anomalies that last: open episodes, the longest first
CREATE MACRO open_episodes(n INTEGER := NULL) AS TABLE
SELECT
    household_id,
    h.tariff,
    h.acorn_group,
    e.first_night,
    e.last_night,
    e.nights,
    e.excess_kwh,
    e.reason
FROM episodes AS e
LEFT JOIN households AS h USING (household_id)
WHERE e.is_open
ORDER BY e.nights DESC, e.first_night, household_id
LIMIT n;
