"""Speed against the limit of the matrix products and against peers: `make bench`."""
