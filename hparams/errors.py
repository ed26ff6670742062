"""The one error that is the user's."""


class UserError(Exception):
    """Input that the user can mend: one line that names the flag or file and the fix.

    Scripts print it to stderr without a traceback and exit with status 2.
    """
