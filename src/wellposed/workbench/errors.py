"""The error of a user's mistake, as opposed to a defect of ours."""


class BadInput(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that says what was wrong and what would be right; the command line prints it
    without a traceback and ends with exit code 2.
    """
