"""A machine with GPUs for tests that run without one."""
