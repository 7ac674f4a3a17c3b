-- every night between the first and the last scored one is scored
WITH scored_nights AS (
    SELECT night, lead(night) OVER (ORDER BY night) AS next_night
    FROM (SELECT DISTINCT night FROM scores)
)
SELECT night + 1 AS first_night, next_night - 1 AS last_night, next_night - night - 1 AS nights
FROM scored_nights
WHERE next_night - night > 1
ORDER BY night
