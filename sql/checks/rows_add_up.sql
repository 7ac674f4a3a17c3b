-- every delivered row is a reading in the lake or a row of the quarantine
-- A row that repeated what the lake held is that same reading.
-- A delivery's quarantine also holds the earlier files' readings that it superseded.
WITH
quarantine_counts AS (
    SELECT
        q.delivery,
        count(*) FILTER (q.file IS NOT DISTINCT FROM d.file) AS own_rows,
        count(*) FILTER (q.file IS NOT DISTINCT FROM d.file AND q.rule = 'superseded') AS superseded
    FROM quarantine AS q
    LEFT JOIN deliveries AS d USING (delivery)
    GROUP BY q.delivery
),
-- Of two deliveries of one file name, no table says whose reading was superseded.
named_deliveries AS (
    SELECT *, count(*) OVER (PARTITION BY file) > 1 AS is_repeated FROM deliveries
),
stored_readings AS (
    SELECT coalesce(sum(num_values) - sum(stats_null_count), 0)::BIGINT AS readings
    FROM parquet_metadata(getvariable('days'))
    WHERE path_in_schema LIKE 'kwh%'
),
totals AS (
    SELECT
        (SELECT coalesce(sum(rows_in - rows_repeated), 0)::BIGINT FROM deliveries) AS rows_in,
        (SELECT readings FROM stored_readings) AS readings,
        (SELECT count(*) FROM quarantine) AS quarantined
)
SELECT
    file,
    delivery,
    rows_in,
    rows_kept,
    rows_quarantined,
    coalesce(own_rows, 0) AS quarantined
FROM named_deliveries
FULL JOIN quarantine_counts USING (delivery)
WHERE
    NOT coalesce(
        rows_in = rows_kept + rows_quarantined
        AND rows_quarantined <= coalesce(own_rows, 0)
        AND rows_quarantined >= coalesce(own_rows, 0) - if(is_repeated, coalesce(superseded, 0), 0),
        false
    )
UNION ALL
SELECT 'all files', NULL, rows_in, readings, quarantined, quarantined
FROM totals
WHERE rows_in <> readings + quarantined
ORDER BY file, delivery
