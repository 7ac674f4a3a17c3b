-- what is flagged is as rare as the alert budget asks
SELECT night, household_id, p_value, getvariable('alert_budget') / 1000 AS most
FROM scores
WHERE is_anomaly AND NOT coalesce(p_value <= (getvariable('alert_budget') / 1000)::FLOAT, false)
ORDER BY night, household_id
