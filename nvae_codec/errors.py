"""Everything a user can cause has one of these types; the terminal turns them into one sentence and exit status 1."""


class NvaeCodecError(Exception):
    """Base of all errors that this package raises on purpose."""


class BitstreamError(NvaeCodecError):
    """The bytes are not a whole, undamaged `.nvb` file that this version can read."""


class ModelError(NvaeCodecError):
    """A model file or a checkpoint is missing, damaged, or not the one that is needed."""


class ImageError(NvaeCodecError):
    """The picture cannot be read, or cannot be represented exactly."""


class DriftError(NvaeCodecError):
    """The bytes are whole, but this machine computed other numbers than the one that made the file."""
