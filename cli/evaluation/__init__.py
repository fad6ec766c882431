"""The commands of `nvae-codec eval`, a module for each."""
