-- The columns of each table's files, read by name: a column that a file lacks is null, one that is
-- not named here is left out, and closed vocabularies are plain text. So a home of an earlier
-- release opens as it is. Columns below a "formerly" line are names of earlier releases, which the
-- views map to the present ones. tests/tasks/test_queries.py compares the types with ml/schemas.py;
-- they stand here again, as importing the schemas would take half a second of every query.
-- A stated schema, unlike union_by_name, also spares opening every file to learn what it holds.

CREATE MACRO parquet_schema(types) AS
map(map_keys(types), [{name: e.key, type: e.value, default_value: NULL} FOR e IN map_entries(types)]);

SET VARIABLE households_columns = parquet_schema(MAP {
    'household_id': 'VARCHAR',
    'tariff': 'VARCHAR',
    'acorn': 'VARCHAR',
    'acorn_group': 'VARCHAR'
});

SET VARIABLE weather_columns = parquet_schema(MAP {
    'ts_utc': 'TIMESTAMP',
    'temperature_c': 'FLOAT',
    'humidity': 'FLOAT'
});

SET VARIABLE holidays_columns = parquet_schema(MAP {'day': 'DATE', 'name': 'VARCHAR'});

SET VARIABLE tariffs_columns = parquet_schema(MAP {'ts_utc': 'TIMESTAMP', 'price': 'VARCHAR'});

SET VARIABLE scores_columns = parquet_schema(MAP {
    'household_id': 'VARCHAR',
    'night': 'DATE',
    'status': 'VARCHAR',
    'n_readings': 'SMALLINT',
    'score': 'FLOAT',
    'p_value': 'FLOAT',
    'evidence': 'FLOAT',
    'is_anomaly': 'BOOLEAN',
    'rank': 'INTEGER',
    'actual_kwh': 'FLOAT',
    'expected_kwh': 'FLOAT',
    'reason': 'VARCHAR',
    'model_version': 'VARCHAR'
});

SET VARIABLE anomalies_columns = parquet_schema(MAP {
    'household_id': 'VARCHAR',
    'night': 'DATE',
    'start_utc': 'TIMESTAMP',
    'end_utc': 'TIMESTAMP',
    'actual_kwh': 'FLOAT[]',
    'expected_kwh': 'FLOAT[]',
    'half_hour_score': 'FLOAT[]',
    'excess_kwh': 'FLOAT',
    'score': 'FLOAT',
    'p_value': 'FLOAT',
    'reason': 'VARCHAR',
    'rank': 'INTEGER',
    'model_version': 'VARCHAR'
});

SET VARIABLE episodes_columns = parquet_schema(MAP {
    'household_id': 'VARCHAR',
    'first_night': 'DATE',
    'last_night': 'DATE',
    'nights': 'INTEGER',
    'excess_kwh': 'FLOAT',
    'reason': 'VARCHAR',
    'is_open': 'BOOLEAN'
});

SET VARIABLE nights_columns = parquet_schema(MAP {
    'night': 'DATE',
    'scored': 'INTEGER',
    'flagged': 'INTEGER',
    'opened': 'INTEGER',
    'opened_per_1000': 'FLOAT',
    'alert_budget': 'FLOAT',
    'fleet_shift': 'FLOAT',
    'tail_inflation': 'FLOAT',
    'tail_inflation_training': 'FLOAT',
    'calibration_size': 'INTEGER',
    'model_version': 'VARCHAR',
    -- formerly
    'common_movement': 'FLOAT',
    'tail_height': 'FLOAT',
    'tail_height_learnt': 'FLOAT'
});

SET VARIABLE quarantine_columns = parquet_schema(MAP {
    'household_id': 'VARCHAR',
    'ts_utc': 'TIMESTAMP',
    'value': 'VARCHAR',
    'rule': 'VARCHAR',
    'file': 'VARCHAR'
});

SET VARIABLE deliveries_columns = parquet_schema(MAP {
    'delivery': 'VARCHAR',
    'file': 'VARCHAR',
    'ingested_at_utc': 'TIMESTAMP',
    'rows_in': 'BIGINT',
    'rows_kept': 'BIGINT',
    'rows_quarantined': 'BIGINT',
    'rows_repeated': 'BIGINT',
    'households': 'BIGINT',
    'first_ts_utc': 'TIMESTAMP',
    'last_ts_utc': 'TIMESTAMP',
    -- formerly
    'rows_set_aside': 'BIGINT'
});

SET VARIABLE spans_columns = parquet_schema(MAP {
    'delivery': 'VARCHAR',
    'household_id': 'VARCHAR',
    'first_ts_utc': 'TIMESTAMP',
    'last_ts_utc': 'TIMESTAMP'
});

SET VARIABLE runs_columns = parquet_schema(MAP {
    'run_id': 'VARCHAR',
    'verb': 'VARCHAR',
    'started_utc': 'TIMESTAMP',
    'finished_utc': 'TIMESTAMP',
    'state': 'VARCHAR',
    'first_night': 'DATE',
    'last_night': 'DATE',
    'rows_in': 'BIGINT',
    'rows_kept': 'BIGINT',
    'rows_quarantined': 'BIGINT',
    'model_version': 'VARCHAR',
    'message': 'VARCHAR',
    -- formerly
    'rows_set_aside': 'BIGINT'
});
