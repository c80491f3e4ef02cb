"""What a loaded model can be asked. With the loaders, the only code that imports torch."""
