"""bmp"""

from nvae_codec.formats.definition import Format
from nvae_codec.formats.others import read

FORMAT = Format("bmp", "bmp", lambda data: False, read)
