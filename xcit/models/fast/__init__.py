"""The same layers and parameters with fused operations, for training and for inference; and what compiles them."""
