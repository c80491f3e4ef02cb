"""OpenAI-compatible servers: started or found, asked over HTTP, and ended whole."""
