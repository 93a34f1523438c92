"""Errors and warnings for invalid user input."""


class InputError(ValueError):
    """Invalid user input, described by one sentence: the field, what is expected, the value.

    Command lines print the message to stderr and exit with code 2; the HTTP service returns a 4xx
    response. Internal errors are never raised as `InputError`.
    """


class SubjectMismatchWarning(UserWarning):
    """Weights finetuned on one subject are used with a photo of another subject."""


class SeveralPeopleWarning(UserWarning):
    """A video shows several people; the message says which one is tracked."""


class HiddenLimbsWarning(UserWarning):
    """Legs or arms are hidden for long; the message names the frames and what is done."""


class PointsOutsideWarning(UserWarning):
    """Imported points lie outside the stated canvas; the message names the frames."""


class PartsOnlyWarning(UserWarning):
    """A pose video has body part labels but no UV coordinates, which are set to 0.5."""


class PoseKindWarning(UserWarning):
    """Pose maps differ in kind from those that the weights were trained with."""


class VideoWarning(UserWarning):
    """A video is cut off, damaged or irregular; the message says how, and what is done."""


class PhotoWarning(UserWarning):
    """A photo's colours or contents are only partly usable; the message says what is done."""


class TableWarning(UserWarning):
    """Rows of a table cannot be used, or are repeated; the message names the lines."""
