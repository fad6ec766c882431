"""How images' samples become coded bytes, and samples again: a payload is one file, encode beside decode."""

from nvae_codec.installation import check_versions

check_versions()
