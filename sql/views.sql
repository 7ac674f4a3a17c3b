-- The views of a home. For each table, a variable of its name holds the glob of its files, and
-- <table>_columns what sql/tables.sql says of its columns.

-- The night of a result table's file, by its directory. It stands for the column, so that a filter
-- on night becomes one on the file's name and opens only the files of the nights asked for.
-- (hive_partitioning would do the same, but DuckDB 2.0 refuses it beside a stated schema.)
CREATE MACRO night_of_file(path) AS
regexp_extract(path, '/night=([0-9-]+)/[^/]+$', 1)::DATE;

-- Without a stated schema, unlike the tables below, and with columns united by name: the lake is one
-- file a month, and only so does DuckDB know the statistics that let `readings` skip nights.
CREATE VIEW days AS
SELECT night, household_id, n_readings, kwh
FROM read_parquet(getvariable('days'), hive_partitioning = false, union_by_name = true);

-- One row a household-night.
CREATE VIEW profiles AS
SELECT
    household_id,
    night,
    kwh,
    n_readings,
    list_sum(kwh) AS day_kwh,
    list_max(kwh) AS peak_kwh
FROM days;

-- One row a half-hour of a delivered household-night, null where missing. Joining the lake's nights
-- lets DuckDB turn a filter on ts_utc into one on night, which UNNEST would not: a night of the
-- full trial is read in 0.04 s, not 8 s.
CREATE VIEW readings AS
WITH
nights AS (
    SELECT unnest(range(min(night), max(night) + 1, INTERVAL 1 DAY))::DATE AS night FROM days
),
slots AS (
    SELECT night, slot, night + to_minutes(30 * (slot - 1)) AS ts_utc
    FROM nights, (SELECT range::INTEGER AS slot FROM range(1, 49))
)
SELECT household_id, ts_utc, kwh[slot] AS kwh
FROM days JOIN slots USING (night);

CREATE VIEW households AS
SELECT * FROM read_parquet(getvariable('households'), schema = getvariable('households_columns'));

CREATE VIEW weather AS
SELECT * FROM read_parquet(getvariable('weather'), schema = getvariable('weather_columns'));

CREATE VIEW holidays AS
SELECT * FROM read_parquet(getvariable('holidays'), schema = getvariable('holidays_columns'));

CREATE VIEW tariffs AS
SELECT * FROM read_parquet(getvariable('tariffs'), schema = getvariable('tariffs_columns'));

CREATE VIEW scores AS
SELECT * EXCLUDE (filename) REPLACE (night_of_file(filename) AS night)
FROM read_parquet(
    getvariable('scores'),
    schema = getvariable('scores_columns'),
    hive_partitioning = false,
    filename = true
);

CREATE VIEW anomalies AS
SELECT * EXCLUDE (filename) REPLACE (night_of_file(filename) AS night)
FROM read_parquet(
    getvariable('anomalies'),
    schema = getvariable('anomalies_columns'),
    hive_partitioning = false,
    filename = true
);

CREATE VIEW nights AS
SELECT
    * EXCLUDE (common_movement, tail_height, tail_height_learnt, filename)
    REPLACE (
        night_of_file(filename) AS night,
        coalesce(fleet_shift, common_movement) AS fleet_shift,
        coalesce(tail_inflation, tail_height) AS tail_inflation,
        coalesce(tail_inflation_training, tail_height_learnt) AS tail_inflation_training
    )
FROM read_parquet(
    getvariable('nights'),
    schema = getvariable('nights_columns'),
    hive_partitioning = false,
    filename = true
);

CREATE VIEW episodes AS
SELECT *
FROM read_parquet(
    getvariable('episodes'), schema = getvariable('episodes_columns'), hive_partitioning = false
);

-- The file's name is the key of the delivery that quarantined the row.
CREATE VIEW quarantine AS
SELECT household_id, ts_utc, "value", rule, file, parse_filename(filename, true) AS delivery
FROM read_parquet(
    getvariable('quarantine'), schema = getvariable('quarantine_columns'), filename = true
);

CREATE VIEW deliveries AS
SELECT
    * EXCLUDE (rows_set_aside)
    REPLACE (coalesce(rows_quarantined, rows_set_aside) AS rows_quarantined)
FROM read_parquet(getvariable('deliveries'), schema = getvariable('deliveries_columns'));

-- From when to when a delivery has readings of each household it holds.
CREATE VIEW spans AS
SELECT * FROM read_parquet(getvariable('spans'), schema = getvariable('spans_columns'));

CREATE VIEW runs AS
SELECT
    * EXCLUDE (rows_set_aside)
    REPLACE (coalesce(rows_quarantined, rows_set_aside) AS rows_quarantined)
FROM read_parquet(getvariable('runs'), schema = getvariable('runs_columns'));
