-- every registered household has one row in each night scored since it was first known
WITH
first_known AS (
    SELECT household_id, min(night) AS first_night
    FROM (
        SELECT household_id, min(night) AS night FROM days GROUP BY household_id
        UNION ALL
        SELECT household_id, min(night) FROM scores GROUP BY household_id
        UNION ALL
        SELECT household_id, (SELECT max(night) FROM scores) FROM households
    )
    GROUP BY household_id
),
expected AS (
    SELECT household_id, night
    FROM first_known, (SELECT DISTINCT night FROM scores)
    WHERE night >= first_night
)
SELECT night, household_id, 'no row' AS problem
FROM expected ANTI JOIN scores USING (household_id, night)
UNION ALL
SELECT night, household_id, 'repeated' FROM scores GROUP BY ALL HAVING count(*) > 1
UNION ALL
SELECT night, household_id, 'not registered' FROM scores ANTI JOIN households USING (household_id)
ORDER BY ALL
