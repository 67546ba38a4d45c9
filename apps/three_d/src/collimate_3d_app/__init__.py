"""The command-line app of collimate-3d."""
