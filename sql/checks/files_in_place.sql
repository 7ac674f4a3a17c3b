-- each night is one file of its own rows, and nothing foreign lies among the results
-- A killed writer leaves a .partial, which no reader's glob matches.
WITH result_files AS (
    SELECT file, regexp_extract(file, '/tables/([^/]+)/night=[^/]+/([^/]+)$', ['t', 'f']) AS part
    FROM glob(getvariable('results'))
),
file_rows AS (
    SELECT filename AS file, night
    FROM read_parquet(
        getvariable('scores'),
        schema = getvariable('scores_columns'),
        hive_partitioning = false,
        filename = true
    )
    UNION ALL
    SELECT filename, night
    FROM read_parquet(
        getvariable('anomalies'),
        schema = getvariable('anomalies_columns'),
        hive_partitioning = false,
        filename = true
    )
    UNION ALL
    SELECT filename, first_night
    FROM read_parquet(
        getvariable('episodes'),
        schema = getvariable('episodes_columns'),
        hive_partitioning = false,
        filename = true
    )
)
SELECT file, 'foreign file' AS problem
FROM result_files
WHERE (part.f <> part.t || '.parquet' OR part.f = '') AND file NOT LIKE '%/.%.partial'
UNION
SELECT file, 'rows of another night'
FROM file_rows
WHERE night <> TRY_CAST(regexp_extract(file, 'night=([^/]+)/', 1) AS DATE)
ORDER BY ALL
