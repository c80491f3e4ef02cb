"""The engine `transformers`: models run by Hugging Face transformers in this process."""
