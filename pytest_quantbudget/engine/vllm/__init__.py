"""vLLM: its own server, started with a method's options, and measured over HTTP as any other."""
