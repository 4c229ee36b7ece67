"""Every error that knownot raises on purpose.

    KnownotError
    ├── DataError        a folder, a photo or a label is not usable; names the file and the remedy
    │   ├── PhotoFormatError  a file is no photo of a format that is read
    │   └── PhotoSizeError    a photo has too many pixels
    ├── ConfigError      a setting is unknown, out of range or contradicts another
    ├── ModelFileError   a model folder is incomplete, damaged or not to be trusted
    ├── ExportError      an exported model does not give the answers of the model it came from
    ├── TrainingError    training cannot go on (for example a loss that is not finite)
    ├── ScoringError     a job on many photos cannot go on (for example workers that die again)
    └── MissingExtraError  an optional dependency is needed; names the pip command

Functions of `knownot.core` raise plain `ValueError` for arguments out of range.
"""


class KnownotError(Exception):
    """Base of all errors that knownot raises on purpose; its text is meant for the user."""


class DataError(KnownotError):
    """A folder, photo or label cannot be used."""


class PhotoFormatError(DataError):
    """A file is no photo of a format that is read."""


class PhotoSizeError(DataError):
    """A photo has more pixels than the limit."""


class ConfigError(KnownotError):
    """A setting is unknown, out of range or contradicts another."""


class ModelFileError(KnownotError):
    """A model folder is incomplete, damaged or not to be trusted."""


class ExportError(KnownotError):
    """An exported model does not give the answers of the model it came from."""


class TrainingError(KnownotError):
    """Training cannot go on."""


class ScoringError(KnownotError):
    """A job on many photos cannot go on."""


class MissingExtraError(KnownotError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'knownot[{extra}]'")
