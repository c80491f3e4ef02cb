"""What a team may add to pytest-quantbudget: each module is one entry point."""
