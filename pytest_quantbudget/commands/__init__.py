"""The commands of `python -m pytest_quantbudget`: one file each, which says its options and what it does."""
