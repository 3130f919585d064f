"""The one exception that a user is meant to see: a mistake with a cure, told in one line."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, where, and what to do; `cli` prints it
    without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What another library's error says first; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
