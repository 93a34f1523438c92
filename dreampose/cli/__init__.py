"""Commands of `python -m dreampose`: each has `add_arguments` and `run`."""
