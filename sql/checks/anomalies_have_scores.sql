-- every anomaly is a flagged row of scores, and every flagged row an anomaly, once
WITH flagged_scores AS (
    SELECT night, household_id, reason, rank, score FROM scores
    WHERE is_anomaly AND night >= $since
),
anomaly_rows AS (
    SELECT night, household_id, reason, rank, score FROM anomalies WHERE night >= $since
)
SELECT *, 'not in anomalies' AS problem
FROM (SELECT * FROM flagged_scores EXCEPT ALL SELECT * FROM anomaly_rows)
UNION ALL
SELECT *, 'not in scores'
FROM (SELECT * FROM anomaly_rows EXCEPT ALL SELECT * FROM flagged_scores)
ORDER BY ALL
