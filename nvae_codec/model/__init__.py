"""The float network. All that computes imports it, and so learns first whether the libraries are new enough."""

from nvae_codec.installation import check_versions

check_versions()
