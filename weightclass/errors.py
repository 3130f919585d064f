"""The one exception that a user is meant to see: a mistake with a cure, told in one line."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and what to do; `cli` prints it
    without a traceback and exits with code 2.
    """
