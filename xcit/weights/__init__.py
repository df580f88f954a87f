"""Between a file and a model: formats, sources, published names, the hub."""
