"""The errors a user can cause and fix.

    UserError                the command line prints it as one line and exits with code 2
    ├── InputError           a file of texts: missing, empty, a bad row, a wrong column
    ├── RecipeError          a recipe or flag: unknown key, value out of range, unknown method
    ├── ModelError           a base model or an adapter that can't be loaded or does not fit
    ├── RunError             a finished run that can't be read, or can't be compared with another
    └── OutputError          an output folder that can't or must not be written

A message is one sentence: the place (file, row or key), the problem, and the fix. It never holds a text.
Any other exception is a bug in this package or in a library.
"""


class UserError(Exception):
    """An error that the user can fix; the message says where and how."""


class InputError(UserError):
    """A file of texts can't be used."""


class RecipeError(UserError):
    """A recipe key or flag is unknown or out of range."""


class ModelError(UserError):
    """A base model or an adapter can't be loaded, or the two do not fit."""


class RunError(UserError):
    """A finished run can't be read or compared."""


class OutputError(UserError):
    """An output folder can't be written, or holds files that must not be replaced."""
