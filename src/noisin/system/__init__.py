"""Access to the system: the import of MXNet on any NumPy, threads, memory, devices, files and processes."""
