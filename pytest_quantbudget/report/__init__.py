"""What a run leaves: the table on the terminal and the JSON document."""
