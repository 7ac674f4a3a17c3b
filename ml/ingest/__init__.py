"""From delivered rows to household-nights: formats, timestamps, rules, conflicts, references."""
