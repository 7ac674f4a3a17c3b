-- every registered household has one row in each night scored since its first reading or row
-- A household with a row on the night before $since was registered by then.
WITH
checked_scores AS (
    SELECT household_id, night FROM scores WHERE night >= $since
),
first_nights AS (
    SELECT household_id, min(night) AS first_night
    FROM (
        SELECT household_id, min(night) AS night
        FROM days
        WHERE night >= $since
        GROUP BY household_id
        UNION ALL
        SELECT household_id, min(night) FROM scores WHERE night >= $since - 1 GROUP BY household_id
        UNION ALL
        SELECT household_id, (SELECT max(night) FROM checked_scores) FROM households
    )
    GROUP BY household_id
),
expected_rows AS (
    SELECT household_id, night
    FROM first_nights, (SELECT DISTINCT night FROM checked_scores)
    WHERE night >= first_night
)
SELECT night, household_id, 'no row' AS problem
FROM expected_rows ANTI JOIN checked_scores USING (household_id, night)
UNION ALL
SELECT night, household_id, 'repeated' FROM checked_scores GROUP BY ALL HAVING count(*) > 1
UNION ALL
SELECT night, household_id, 'not registered'
FROM checked_scores ANTI JOIN households USING (household_id)
ORDER BY ALL
