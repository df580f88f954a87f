"""The input pipeline: from files to batches on the device."""
