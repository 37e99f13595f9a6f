"""One module per command of `navsim-adapter`: `add_arguments` declares its options, `run` runs it."""
