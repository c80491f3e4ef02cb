"""What a run leaves: the JSON document and the table; and judging a report again."""
