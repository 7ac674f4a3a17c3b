-- quarantined rows by the rule they broke
CREATE MACRO quarantine_by_rule() AS TABLE
SELECT
    rule,
    count(*) AS "rows",
    count(DISTINCT household_id) AS households,
    count(DISTINCT file) AS files,
    min(ts_utc) AS first_utc,
    max(ts_utc) AS last_utc
FROM quarantine
GROUP BY rule
ORDER BY "rows" DESC, rule;
