"""The network that compares a night with the household's own last six weeks, and its parts."""
