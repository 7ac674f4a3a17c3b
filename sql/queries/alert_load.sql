-- flags a night and their share of the scored households, the last night first
-- :first_night DATE = NULL
-- :last_night DATE = NULL
SELECT
    night,
    count(score) AS scored,
    count(*) FILTER (is_anomaly) AS flagged,
    round(1000 * count(*) FILTER (is_anomaly) / nullif(count(score), 0), 2) AS flagged_per_1000
FROM scores
WHERE
    night >= coalesce($first_night, DATE '-infinity')
    AND night <= coalesce($last_night, DATE 'infinity')
GROUP BY night
ORDER BY night DESC
