-- every household's score of a night, the most urgent first
CREATE MACRO scores_of_night(of_night DATE := NULL) AS TABLE
SELECT *
FROM scores AS s
WHERE s.night = coalesce(of_night, getvariable('last_scored_night'))
ORDER BY rank NULLS LAST, household_id;
