"""What the paper ran, as data, and the runner that runs it: `python -m experiments --help`."""
