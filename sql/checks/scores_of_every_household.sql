-- every registered household has one row in each night scored since it was first known
-- Who has a row in the night before the first one looked at was known by then.
-- :since DATE = DATE '0001-01-01'
WITH
looked_at AS (
    SELECT household_id, night FROM scores WHERE night >= $since
),
first_known AS (
    SELECT household_id, min(night) AS first_night
    FROM (
        SELECT household_id, min(night) AS night
        FROM days
        WHERE night >= $since
        GROUP BY household_id
        UNION ALL
        SELECT household_id, min(night) FROM scores WHERE night >= $since - 1 GROUP BY household_id
        UNION ALL
        SELECT household_id, (SELECT max(night) FROM looked_at) FROM households
    )
    GROUP BY household_id
),
expected AS (
    SELECT household_id, night
    FROM first_known, (SELECT DISTINCT night FROM looked_at)
    WHERE night >= first_night
)
SELECT night, household_id, 'no row' AS problem
FROM expected ANTI JOIN looked_at USING (household_id, night)
UNION ALL
SELECT night, household_id, 'repeated' FROM looked_at GROUP BY ALL HAVING count(*) > 1
UNION ALL
SELECT night, household_id, 'not registered'
FROM looked_at ANTI JOIN households USING (household_id)
ORDER BY ALL
