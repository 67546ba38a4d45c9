"""3D methods: scene-graph-guided pre-training, LiDAR equivariance."""
