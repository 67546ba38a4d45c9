"""What the losses stand on: sums over all pairs, taken tile by tile, with gradients that recompute the tiles.

Torch tiles run everywhere and are the reference; on CUDA the same sums run fused in Triton.
"""
