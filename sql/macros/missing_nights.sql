-- nights of the lake's span on which a registered household delivered nothing, as ranges
CREATE MACRO missing_nights(of_household VARCHAR := NULL) AS TABLE
WITH
lake_span AS (
    SELECT min(night) AS begin_night, max(night) AS end_night FROM days
),
household_nights AS (
    SELECT d.household_id, d.night FROM days AS d
    UNION ALL
    SELECT h.household_id, NULL FROM households AS h
),
delivered_nights AS (
    SELECT hn.household_id, list_sort(list(night) FILTER (night IS NOT NULL)) AS nights
    FROM household_nights AS hn
    WHERE hn.household_id = coalesce(of_household, hn.household_id)
    GROUP BY hn.household_id
),
gaps AS (
    SELECT
        dn.household_id,
        unnest(list_prepend(begin_night - 1, coalesce(nights, []))) AS night_before,
        unnest(list_append(coalesce(nights, []), end_night + 1)) AS night_after
    FROM delivered_nights AS dn, lake_span
)
SELECT
    g.household_id,
    night_before + 1 AS first_night,
    night_after - 1 AS last_night,
    night_after - night_before - 1 AS nights
FROM gaps AS g
WHERE night_after - night_before > 1
ORDER BY g.household_id, first_night;
