"""The layers with fused operations, and what compiles them."""
