"""Pages of the documentation that are written at build time, from the code, the guides and the recipes."""
