-- readings lie between 0 and what the supply can deliver, and no household-night is without any
SELECT night, household_id, n_readings, list_min(kwh) AS min_kwh, peak_kwh
FROM profiles
WHERE night >= $since AND NOT coalesce(
    len(kwh) = 48
    AND n_readings = list_count(kwh)
    AND n_readings > 0
    AND list_min(kwh) >= 0
    AND peak_kwh <= getvariable('supply_limit_kwh')::FLOAT,
    false
)
ORDER BY night, household_id
