"""The command-line app of collimate-audio."""
