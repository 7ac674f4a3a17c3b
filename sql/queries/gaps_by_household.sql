-- half-hours missing between a household's first and last reading
-- :household_id VARCHAR = NULL
-- :first_night DATE = NULL
-- :last_night DATE = NULL
WITH
of_day AS (
    SELECT
        household_id,
        n_readings,
        night
        + to_minutes(30 * (
            CASE WHEN kwh[1] IS NOT NULL THEN 1
            ELSE list_position([k IS NOT NULL FOR k IN kwh], true) END - 1
        )) AS first_utc,
        night
        + to_minutes(30 * (
            CASE WHEN kwh[48] IS NOT NULL THEN 48
            ELSE 49 - list_position([k IS NOT NULL FOR k IN list_reverse(kwh)], true) END - 1
        )) AS last_utc
    FROM profiles
    WHERE
        household_id = coalesce($household_id, household_id)
        AND night >= coalesce($first_night, DATE '-infinity')
        AND night <= coalesce($last_night, DATE 'infinity')
),
of_household AS (
    SELECT
        household_id,
        min(first_utc) AS first_utc,
        max(last_utc) AS last_utc,
        sum(n_readings)::BIGINT AS readings
    FROM of_day
    GROUP BY household_id
)
SELECT
    household_id,
    first_utc,
    last_utc,
    readings,
    date_diff('minute', first_utc, last_utc) // 30 + 1 - readings AS missing
FROM of_household
WHERE missing > 0
ORDER BY missing DESC, household_id
