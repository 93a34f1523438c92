"""What users are told when their input cannot be used. Knows nothing of models or Ray."""


class InputError(ValueError):
    """Bad input from a user: one sentence that names the field, what was expected and what came.

    Every command line turns it into that sentence on stderr and exit code 2; the HTTP service
    turns it into a 4xx answer. Faults of the program itself are never raised as `InputError`.
    """


class SubjectMismatchWarning(UserWarning):
    """Weights finetuned on one person are used with the photo of another."""


class SeveralPeopleWarning(UserWarning):
    """A video shows more than one person; the message names the one that is followed."""


class PartsOnlyWarning(UserWarning):
    """A pose video tells the parts of the body but no U and V, which are set to 0.5."""


class VideoWarning(UserWarning):
    """A video is cut off, damaged or irregular; the message says how, and what is done."""


class PhotoWarning(UserWarning):
    """A photo's colours or contents are only partly usable; the message says what is done."""


class TableWarning(UserWarning):
    """Rows of a table cannot be used, or are repeated; the message names the lines."""
