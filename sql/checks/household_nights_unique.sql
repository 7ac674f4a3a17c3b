-- the lake holds each household-night once, in the file of its month
SELECT night, household_id, count(*) AS "rows", list_distinct(list(month)) AS months
FROM (
    SELECT night, household_id, regexp_extract(filename, 'month=([0-9-]+)', 1) AS month
    FROM read_parquet(
        getvariable('days'),
        hive_partitioning = false,
        union_by_name = true,
        filename = true
    )
    WHERE night >= $since
)
GROUP BY night, household_id
HAVING count(*) > 1 OR any_value(month) <> strftime(night, '%Y-%m')
ORDER BY night, household_id
