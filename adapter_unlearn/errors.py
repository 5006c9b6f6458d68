"""The errors a user can cause and mend.

    UserError                what the command line prints as one line, exit code 2
    ├── InputError           a file of texts: missing, empty, a bad row, a wrong column
    ├── RecipeError          a recipe or flag: unknown key, value out of range, unknown method
    ├── ModelError           a base model or an adapter that can't be loaded or doesn't fit
    ├── RunError             a finished run that can't be read, or can't be compared with another
    └── OutputError          an output folder that can't or must not be written

Every message is one sentence that names the place (file, row, key) and the mend, and never holds a text to forget.
Anything else that is raised is a bug in this package or below it.
"""


class UserError(Exception):
    """An error the user can mend; the message says where and how."""


class InputError(UserError):
    """A file of texts can't be used as it is."""


class RecipeError(UserError):
    """A recipe key or flag is unknown or out of range."""


class ModelError(UserError):
    """A base model or adapter can't be loaded, or the two don't fit."""


class RunError(UserError):
    """A finished run can't be read, or not be compared with another."""


class OutputError(UserError):
    """An output folder can't be written, or holds something that must not be lost."""
