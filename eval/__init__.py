"""Rates and times of real files, beside those of other codecs."""
