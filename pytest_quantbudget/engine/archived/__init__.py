"""auto-gptq and autoawq by their own loaders, which a script serves from an interpreter of theirs."""
