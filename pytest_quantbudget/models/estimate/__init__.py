"""Memory before anything is loaded: predicted from a model's `config.json`, without torch, weights or a GPU."""
