-- every household's score of a night, the most urgent first
-- :night DATE = (SELECT max(night) FROM scores)
SELECT *
FROM scores
WHERE night = $night
ORDER BY rank NULLS LAST, household_id
