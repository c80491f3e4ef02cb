"""The project's own tests run in processes of their own, through pytester."""

pytest_plugins = ["pytester"]
