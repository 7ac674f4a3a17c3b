-- half-hours missing between a household's first and last reading
-- :household_id VARCHAR = NULL
-- :first_night DATE = NULL
-- :last_night DATE = NULL
WITH
household_nights AS MATERIALIZED (
    SELECT
        household_id,
        min(night) AS first_night,
        max(night) AS last_night,
        sum(n_readings)::BIGINT AS readings
    FROM days
    WHERE
        household_id = coalesce($household_id, household_id)
        AND night >= coalesce($first_night, DATE '-infinity')
        AND night <= coalesce($last_night, DATE 'infinity')
    GROUP BY household_id
),
-- Only the half-hours of a household's first and last day say when it begins and ends.
reading_spans AS (
    SELECT
        h.household_id,
        h.readings,
        h.first_night
        + to_minutes(30 * (list_position([k IS NOT NULL FOR k IN f.kwh], true) - 1)) AS first_utc,
        h.last_night + to_minutes(
            30 * (48 - list_position([k IS NOT NULL FOR k IN list_reverse(l.kwh)], true))
        ) AS last_utc
    FROM household_nights AS h
    JOIN days AS f ON h.household_id = f.household_id AND h.first_night = f.night
    JOIN days AS l ON h.household_id = l.household_id AND h.last_night = l.night
)
SELECT
    household_id,
    first_utc,
    last_utc,
    readings,
    date_diff('minute', first_utc, last_utc) // 30 + 1 - readings AS missing
FROM reading_spans
WHERE missing > 0
ORDER BY missing DESC, household_id
