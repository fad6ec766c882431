"""gif"""

from nvae_codec.formats.definition import Format
from nvae_codec.formats.others import read

FORMAT = Format("gif", "gif", lambda data: False, read)
