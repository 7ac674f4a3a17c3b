"""Reasons of flagged nights and the half-hours that show them: rules and their numbers."""
