-- no night is left out between the first and the last one scored
WITH scored AS (
    SELECT night, lead(night) OVER (ORDER BY night) AS following
    FROM (SELECT DISTINCT night FROM scores)
)
SELECT night + 1 AS first_night, following - 1 AS last_night, following - night - 1 AS nights
FROM scored
WHERE following - night > 1
ORDER BY night
