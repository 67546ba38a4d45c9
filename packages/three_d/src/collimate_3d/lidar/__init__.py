"""LiDAR: sweeps, their readers, labels, motion, and how detectors are judged."""
