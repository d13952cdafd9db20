"""The one exception that is meant for the user."""


class UserError(Exception):
    """A problem the user can mend: one line that names the file and the remedy.

    The commands print it on stderr and end with exit code 1. Every other
    exception is a bug and keeps its traceback.
    """
