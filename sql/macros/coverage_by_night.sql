-- households delivered and scored, night by night, the last night first
CREATE MACRO coverage_by_night(
    from_night DATE := NULL,
    to_night DATE := NULL,
    n INTEGER := NULL
) AS TABLE
WITH
delivery_counts AS (
    SELECT night, count(*) AS delivered FROM days GROUP BY night
),
score_counts AS (
    SELECT
        night,
        sum(n_readings)::BIGINT AS readings,
        count(*) FILTER (status = 'scored') AS scored,
        count(*) FILTER (status = 'cold_start') AS cold_start,
        count(*) FILTER (status = 'incomplete') AS incomplete,
        count(*) FILTER (status = 'missing') AS missing,
        count(*) FILTER (is_anomaly) AS flagged
    FROM scores
    GROUP BY night
)
SELECT
    night,
    (SELECT count(*) FROM households) AS registered,
    coalesce(delivered, 0) AS delivered,
    score_counts.* EXCLUDE (night)
FROM delivery_counts
FULL JOIN score_counts USING (night)
WHERE
    night >= coalesce(from_night, DATE '-infinity')
    AND night <= coalesce(to_night, DATE 'infinity')
ORDER BY night DESC
LIMIT n;
