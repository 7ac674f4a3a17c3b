-- flagged nights by Acorn group and tariff
CREATE MACRO anomalies_by_group(from_night DATE := NULL, to_night DATE := NULL) AS TABLE
WITH household_counts AS (
    SELECT
        household_id,
        count(score) AS scored,
        count(*) FILTER (is_anomaly) AS flagged
    FROM scores
    WHERE
        night >= coalesce(from_night, DATE '-infinity')
        AND night <= coalesce(to_night, DATE 'infinity')
    GROUP BY household_id
)
SELECT
    acorn_group,
    tariff,
    count(*) AS households,
    count(*) FILTER (flagged > 0) AS flagged_households,
    sum(scored)::BIGINT AS scored_nights,
    sum(flagged)::BIGINT AS flagged_nights,
    round(1000 * sum(flagged) / nullif(sum(scored), 0), 2) AS flagged_per_1000
FROM household_counts
LEFT JOIN households USING (household_id)
GROUP BY acorn_group, tariff
ORDER BY flagged_per_1000 DESC NULLS LAST, acorn_group, tariff;
