"""The command-line app of collimate-medical."""
