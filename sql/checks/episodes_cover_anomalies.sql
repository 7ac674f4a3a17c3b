-- every anomaly lies in one episode of its household, and no episode holds anything else
WITH
matched_nights AS (
    SELECT a.household_id, a.night, e.first_night, e.last_night, e.nights
    FROM (SELECT household_id, night FROM anomalies) AS a
    FULL JOIN episodes AS e
        ON a.household_id = e.household_id AND a.night BETWEEN e.first_night AND e.last_night
),
episodes_per_anomaly AS (
    SELECT household_id, night, count(first_night) AS episodes
    FROM matched_nights
    WHERE night IS NOT NULL
    GROUP BY household_id, night
),
anomalies_per_episode AS (
    SELECT
        e.household_id,
        e.first_night,
        e.last_night,
        e.nights,
        count(a.night) AS anomalies,
        min(a.night) AS first_anomaly,
        max(a.night) AS last_anomaly
    FROM episodes AS e
    LEFT JOIN (SELECT household_id, night FROM anomalies) AS a
        ON a.household_id = e.household_id AND a.night BETWEEN e.first_night AND e.last_night
    GROUP BY ALL
)
SELECT household_id, night, episodes || ' episodes hold this night' AS problem
FROM episodes_per_anomaly
WHERE episodes <> 1
UNION ALL
SELECT household_id, first_night, anomalies || ' anomalies in an episode of ' || nights
FROM anomalies_per_episode
WHERE anomalies <> nights
UNION ALL
SELECT household_id, first_night, 'an episode begins or ends on a night without anomaly'
FROM anomalies_per_episode
WHERE anomalies > 0 AND (first_anomaly <> first_night OR last_anomaly <> last_night)
ORDER BY ALL
