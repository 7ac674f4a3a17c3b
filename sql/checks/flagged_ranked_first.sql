-- flagged households rank before households that are not flagged
WITH unflagged AS (
    SELECT night, min(rank) AS first_unflagged_rank
    FROM scores
    WHERE NOT is_anomaly AND night >= $since
    GROUP BY night
)
SELECT night, household_id, rank, first_unflagged_rank
FROM (SELECT night, household_id, rank FROM scores WHERE is_anomaly) JOIN unflagged USING (night)
WHERE NOT coalesce(rank < first_unflagged_rank, true)
ORDER BY night, rank
