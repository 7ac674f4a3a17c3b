-- households, nights and readings in the lake
CREATE MACRO lake_coverage() AS TABLE
WITH coverage AS (
    SELECT
        (SELECT count(*) FROM households) AS registered,
        count(DISTINCT household_id) AS delivered,
        min(night) AS first_night,
        max(night) AS last_night,
        count(*) AS household_nights
    FROM days
),
-- Parquet's own statistics: no reading is decoded.
stored_readings AS (
    SELECT (sum(num_values) - sum(stats_null_count))::BIGINT AS readings
    FROM parquet_metadata(getvariable('days'))
    WHERE path_in_schema LIKE 'kwh%'
)
SELECT
    registered,
    delivered AS households,
    first_night,
    last_night,
    household_nights,
    coalesce(readings, 0) AS readings,
    round(1 - readings / nullif(48 * household_nights, 0), 5) AS missing_share
FROM coverage, stored_readings;
