"""Running what has no record yet: the grid runner, and its engines, threads or Dask."""
