-- every anomaly is a flagged row of scores, and every flagged row an anomaly, once
-- :since DATE = DATE '0001-01-01'
WITH flagged AS (
    SELECT night, household_id, reason, rank, score FROM scores
    WHERE is_anomaly AND night >= $since
),
listed AS (
    SELECT night, household_id, reason, rank, score FROM anomalies WHERE night >= $since
)
SELECT *, 'not in anomalies' AS problem
FROM (SELECT * FROM flagged EXCEPT ALL SELECT * FROM listed)
UNION ALL
SELECT *, 'not in scores'
FROM (SELECT * FROM listed EXCEPT ALL SELECT * FROM flagged)
ORDER BY ALL
