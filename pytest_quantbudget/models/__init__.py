"""Where weights come from, whether they may be loaded, how large they are, and the methods that load them."""
