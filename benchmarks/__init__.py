"""Training speed compared with the limit of the matrix products and with peers: `make bench`."""
