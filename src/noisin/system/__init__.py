"""What noisin needs of the system: MXNet imported on any NumPy, threads, memory, CUDA."""
