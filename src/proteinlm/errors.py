"""The one exception for what a user gave us and cannot be used.

Everything below `cli` raises `InputError` for bad input; `cli` prints its message as one line and exits with status 2.
Any other exception is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Input that cannot be used. The message names the value, the limit and the remedy.

    >>> raise InputError("model 'esm9' is unknown; `plm models` lists the names")
    Traceback (most recent call last):
    ...
    proteinlm.errors.InputError: model 'esm9' is unknown; `plm models` lists the names
    """
