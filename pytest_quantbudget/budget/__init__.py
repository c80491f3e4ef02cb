"""Budget files: found, read, checked, described by a schema, and edited in place."""
