"""The command-line app of collimate-video."""
