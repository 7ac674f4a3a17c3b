"""The one exception that a person's mistake raises."""


class UserError(Exception):
    """Something a person can mend: the message is one clear line, printed without a traceback."""
