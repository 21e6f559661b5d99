"""The command `noisin`: one module a command, `main` with their list, `parser` and `options` with what they share."""
