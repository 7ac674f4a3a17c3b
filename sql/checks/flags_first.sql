-- whoever is flagged ranks before whoever is not
SELECT flagged.night, flagged.household_id, flagged.rank, min(quiet.rank) AS first_quiet
FROM scores AS flagged JOIN scores AS quiet USING (night)
WHERE flagged.is_anomaly AND NOT quiet.is_anomaly
GROUP BY ALL
HAVING NOT coalesce(flagged.rank < min(quiet.rank), true)
ORDER BY flagged.night, flagged.rank
