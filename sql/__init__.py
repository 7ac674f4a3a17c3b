"""What is asked: views, named queries and checks, read as package data."""
