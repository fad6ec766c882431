"""tiff"""

from nvae_codec.formats.definition import Format
from nvae_codec.formats.others import read

FORMAT = Format("tiff", "tiff", lambda data: False, read)
