"""What a run leaves: its directory, weights, record and events; and the list of runs."""
