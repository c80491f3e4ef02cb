"""What is measured of a loaded model: memory and speed."""
