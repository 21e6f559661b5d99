"""Compiled code on a CPU: the C sources, how MXNet's engine runs them, normal draws and cross-entropy."""
