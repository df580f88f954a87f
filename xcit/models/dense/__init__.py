"""Dense prediction: the pyramid of feature maps, and the heads for detection and segmentation on it."""
