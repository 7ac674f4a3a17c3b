-- the scored households of a night are ranked 1 to n
-- :since DATE = DATE '0001-01-01'
WITH ranked AS (
    SELECT
        night,
        household_id,
        rank,
        row_number() OVER (PARTITION BY night ORDER BY rank NULLS LAST, household_id) AS expected
    FROM scores
    WHERE status IN ('scored', 'cold_start') AND night >= $since
)
SELECT night, household_id, rank, expected
FROM ranked
WHERE rank IS DISTINCT FROM expected
ORDER BY night, expected
