-- nights of the lake's span on which a registered household delivered nothing, as ranges
-- :household_id VARCHAR = NULL
WITH
lake_span AS (
    SELECT min(night) AS begin_night, max(night) AS end_night FROM days
),
household_nights AS (
    SELECT household_id, night FROM days
    UNION ALL
    SELECT household_id, NULL FROM households
),
delivered_nights AS (
    SELECT household_id, list_sort(list(night) FILTER (night IS NOT NULL)) AS nights
    FROM household_nights
    WHERE household_id = coalesce($household_id, household_id)
    GROUP BY household_id
),
gaps AS (
    SELECT
        household_id,
        unnest(list_prepend(begin_night - 1, coalesce(nights, []))) AS night_before,
        unnest(list_append(coalesce(nights, []), end_night + 1)) AS night_after
    FROM delivered_nights, lake_span
)
SELECT
    household_id,
    night_before + 1 AS first_night,
    night_after - 1 AS last_night,
    night_after - night_before - 1 AS nights
FROM gaps
WHERE night_after - night_before > 1
ORDER BY household_id, first_night
