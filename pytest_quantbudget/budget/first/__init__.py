"""The first budget for a model: which methods, tasks and limits it begins with, and its text."""
