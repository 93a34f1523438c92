"""Commands of `python -m dreampose`. Each module has `add_arguments(parser)` and `run(args)`."""
