"""Development tools: measurements against peers."""
