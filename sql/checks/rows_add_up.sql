-- rows delivered are rows kept and rows set aside, and those are in the quarantine
WITH held AS (
    SELECT delivery, count(*) AS quarantined
    FROM quarantine
    GROUP BY delivery
)
SELECT
    file,
    delivery,
    rows_in,
    rows_kept,
    rows_set_aside,
    coalesce(quarantined, 0) AS quarantined
FROM deliveries
FULL JOIN held USING (delivery)
WHERE NOT coalesce(
    rows_in = rows_kept + rows_set_aside AND rows_set_aside = coalesce(quarantined, 0), false
)
ORDER BY file, delivery
