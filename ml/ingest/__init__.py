"""From delivered rows to household-days: shapes, rules, conflicts."""
