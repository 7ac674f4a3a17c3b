-- scores lie within their bounds and agree with their status
WITH checked_scores AS (
    SELECT *, status IN ('scored', 'cold_start') AS is_scored
    FROM scores
    WHERE night >= $since
)
SELECT
    night,
    household_id,
    concat_ws(
        ', ',
        CASE WHEN status NOT IN ('scored', 'cold_start', 'incomplete', 'missing')
            THEN 'unknown status' END,
        CASE WHEN n_readings NOT BETWEEN 0 AND 48 THEN 'n_readings out of bounds' END,
        CASE WHEN (status = 'missing') <> (n_readings = 0) THEN 'n_readings against status' END,
        CASE WHEN is_scored AND NOT coalesce(isfinite(score), false) THEN 'no score' END,
        CASE WHEN is_scored AND NOT coalesce(p_value BETWEEN 0 AND 1, false)
            THEN 'p_value out of bounds' END,
        CASE WHEN is_scored AND NOT coalesce(evidence >= 0 AND isfinite(evidence), false)
            THEN 'evidence out of bounds' END,
        CASE WHEN NOT is_scored AND coalesce(score, p_value, evidence, rank) IS NOT NULL
            THEN 'scored against status' END,
        CASE WHEN is_anomaly IS NULL OR (is_anomaly AND NOT is_scored)
            THEN 'flagged against status' END,
        CASE WHEN is_anomaly <> (reason IS NOT NULL) THEN 'reason against flag' END
    ) AS problem,
    status,
    n_readings,
    score,
    p_value,
    evidence,
    is_anomaly,
    reason
FROM checked_scores
WHERE problem <> ''
ORDER BY night, household_id
