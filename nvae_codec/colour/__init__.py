"""Colour spaces, and how images that come from one are recognised."""
