"""The fault table: rows as data, the faults themselves, and a run of pytest around them."""
