"""The terminal: options, files, progress and exit codes. No arithmetic."""
