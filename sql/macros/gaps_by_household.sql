-- half-hours missing between a household's first and last reading
CREATE MACRO gaps_by_household(
    of_household VARCHAR := NULL,
    from_night DATE := NULL,
    to_night DATE := NULL
) AS TABLE
WITH
household_nights AS MATERIALIZED (
    SELECT
        d.household_id,
        min(d.night) AS begin_night,
        max(d.night) AS end_night,
        sum(d.n_readings)::BIGINT AS readings
    FROM days AS d
    WHERE
        d.household_id = coalesce(of_household, d.household_id)
        AND night >= coalesce(from_night, DATE '-infinity')
        AND night <= coalesce(to_night, DATE 'infinity')
    GROUP BY d.household_id
),
-- Only the half-hours of a household's first and last day say when it begins and ends.
reading_spans AS (
    SELECT
        h.household_id,
        h.readings,
        h.begin_night
        + to_minutes(30 * (list_position([k IS NOT NULL FOR k IN f.kwh], true) - 1)) AS first_utc,
        h.end_night + to_minutes(
            30 * (48 - list_position([k IS NOT NULL FOR k IN list_reverse(l.kwh)], true))
        ) AS last_utc
    FROM household_nights AS h
    JOIN days AS f ON h.household_id = f.household_id AND h.begin_night = f.night
    JOIN days AS l ON h.household_id = l.household_id AND h.end_night = l.night
)
SELECT
    s.household_id,
    first_utc,
    last_utc,
    readings,
    date_diff('minute', first_utc, last_utc) // 30 + 1 - readings AS missing
FROM reading_spans AS s
WHERE missing > 0
ORDER BY missing DESC, s.household_id;
