"""Question sets: where they come from, how they are asked, how answers are read."""
