"""Everything about the `.nvb` file format: its specification, its reader and writer, and frozen streams."""
