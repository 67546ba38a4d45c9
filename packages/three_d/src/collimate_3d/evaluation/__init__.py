"""How 3D models are evaluated: grounding, captions, objects by their names."""
