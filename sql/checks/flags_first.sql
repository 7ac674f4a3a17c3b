-- whoever is flagged ranks before whoever is not
-- :since DATE = DATE '0001-01-01'
WITH quiet AS (
    SELECT night, min(rank) AS first_quiet
    FROM scores
    WHERE NOT is_anomaly AND night >= $since
    GROUP BY night
)
SELECT night, household_id, rank, first_quiet
FROM (SELECT night, household_id, rank FROM scores WHERE is_anomaly) JOIN quiet USING (night)
WHERE NOT coalesce(rank < first_quiet, true)
ORDER BY night, rank
