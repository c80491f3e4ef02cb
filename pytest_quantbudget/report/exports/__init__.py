"""A report in the formats of other programs: one file a format, which `commands/export.py` lists."""
