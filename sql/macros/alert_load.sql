-- flags a night and their share of the scored households, the last night first
CREATE MACRO alert_load(from_night DATE := NULL, to_night DATE := NULL) AS TABLE
SELECT
    night,
    count(score) AS scored,
    count(*) FILTER (is_anomaly) AS flagged,
    round(1000 * count(*) FILTER (is_anomaly) / nullif(count(score), 0), 2) AS flagged_per_1000
FROM scores
WHERE
    night >= coalesce(from_night, DATE '-infinity')
    AND night <= coalesce(to_night, DATE 'infinity')
GROUP BY night
ORDER BY night DESC;
