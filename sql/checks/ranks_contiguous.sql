-- the scored households of a night are ranked 1 to n
WITH ranked AS (
    SELECT
        night,
        household_id,
        rank,
        row_number() OVER (
            PARTITION BY night ORDER BY rank NULLS LAST, household_id
        ) AS expected_rank
    FROM scores
    WHERE status IN ('scored', 'cold_start') AND night >= $since
)
SELECT night, household_id, rank, expected_rank
FROM ranked
WHERE rank IS DISTINCT FROM expected_rank
ORDER BY night, expected_rank
