"""The engine `llama.cpp`: GGUF files, run in the measuring process by the functions of llama.cpp's `llama.h`."""
