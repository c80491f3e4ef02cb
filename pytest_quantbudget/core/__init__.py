"""Records that the parts exchange, their JSON, units, errors with file and line, safe text and safe files."""
